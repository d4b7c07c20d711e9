"""A reader of JSON, letter by letter (RFC 8259): whether a text is JSON, and nothing else.

The patterns of the scan run inside `re`, where no fuzzer sees which way they take. Each way through the
grammar is a branch here, so an input that takes a new one is noticed and varied further.
"""

from __future__ import annotations

_HEX = "0123456789abcdefABCDEF"
_DIGITS = "0123456789"


class NotJson(Exception):
    """The text is none."""


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def next(self) -> str:
        letter = self.peek()
        if not letter:
            raise NotJson
        self.at += 1
        return letter

    def blank(self) -> None:
        while self.peek() and self.peek() in " \t\n\r":
            self.at += 1

    def value(self) -> None:
        letter = self.next()
        if letter == "{":
            self.members()
        elif letter == "[":
            self.items()
        elif letter == '"':
            self.string()
        elif letter == "t":
            self.word("rue")
        elif letter == "f":
            self.word("alse")
        elif letter == "n":
            self.word("ull")
        else:
            self.number(letter)

    def members(self) -> None:
        self.blank()
        if self.peek() == "}":
            self.at += 1
            return
        while True:
            if self.next() != '"':
                raise NotJson
            self.string()
            self.blank()
            if self.next() != ":":
                raise NotJson
            self.blank()
            self.value()
            if self.ends("}"):
                return

    def items(self) -> None:
        self.blank()
        if self.peek() == "]":
            self.at += 1
            return
        while True:
            self.value()
            if self.ends("]"):
                return

    def ends(self, close: str) -> bool:
        self.blank()
        letter = self.next()
        if letter == close:
            return True
        if letter != ",":
            raise NotJson
        self.blank()
        return False

    def string(self) -> None:
        while (letter := self.next()) != '"':
            if letter < " ":
                raise NotJson
            if letter == "\\":
                self.escape()

    def escape(self) -> None:
        letter = self.next()
        if letter == "u":
            for _ in range(4):
                if self.next() not in _HEX:
                    raise NotJson
        elif letter not in '"\\/bfnrt':
            raise NotJson

    def word(self, rest: str) -> None:
        for letter in rest:
            if self.next() != letter:
                raise NotJson

    def number(self, letter: str) -> None:
        if letter == "-":
            letter = self.next()
        if letter == "0":
            pass
        elif letter in _DIGITS:
            self.digits(at_least=0)
        else:
            raise NotJson
        if self.peek() == ".":
            self.at += 1
            self.digits(at_least=1)
        if self.peek() and self.peek() in "eE":
            self.at += 1
            if self.peek() and self.peek() in "+-":
                self.at += 1
            self.digits(at_least=1)

    def digits(self, at_least: int) -> None:
        start = self.at
        while self.peek() and self.peek() in _DIGITS:
            self.at += 1
        if self.at - start < at_least:
            raise NotJson


def is_json(data: bytes) -> bool:
    """Whether `data` is a JSON text in UTF-8. Raises RecursionError where it is nested too deep."""
    try:
        reader = _Reader(data.decode("utf-8"))
        reader.blank()
        reader.value()
        reader.blank()
    except (NotJson, UnicodeDecodeError):
        return False
    return not reader.peek()
