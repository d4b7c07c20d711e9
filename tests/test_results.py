"""`results_url` points at the proxy; every other byte of a batch answer stays."""

from __future__ import annotations

import pytest

from proxy.results import localized

OWN = b"https://proxy.example/anthropic"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            b'{"id":"b","results_url":"https://api.anthropic.com/v1/messages/batches/b/results","x":1}',
            b'{"id":"b","results_url":"https://proxy.example/anthropic/v1/messages/batches/b/results","x":1}',
        ),
        (
            b'{"results_url" : "http:\\/\\/h:1\\/base\\/v1\\/messages\\/batches\\/b\\/results"}',
            b'{"results_url" : "https://proxy.example/anthropic\\/v1\\/messages\\/batches\\/b\\/results"}',
        ),
        (b'{"results_url":null}', b'{"results_url":null}'),
        (
            b'{"note":"https://api.anthropic.com/v1/messages/batches/b"}',
            b'{"note":"https://api.anthropic.com/v1/messages/batches/b"}',
        ),
    ],
)
def test_only_the_front_of_that_value_changes(before: bytes, after: bytes) -> None:
    """Whatever host and base stand there, in whatever escaping."""
    assert localized(before, OWN) == after


def test_every_batch_of_a_list() -> None:
    """A list answer holds many."""
    one = b'{"results_url":"https://h/v1/messages/batches/%d/results"}'
    answer = b'{"data":[' + b",".join(one % number for number in range(20)) + b"]}"
    assert localized(answer, OWN).count(OWN) == 20
