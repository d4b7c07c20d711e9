/* HTTP/1.1 messages (RFC 9112), read in pieces of any size: heads by line, bodies by length or by chunk.
 *
 * Stricter than a client has to be: an answer that lasts until its connection closes is BAD, because its end
 * cannot be told from a cut. So is a 1xx head, which nothing here asks for.
 */
#include "load.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* The next line without its line end, or NULL until it is whole (or is longer than `start`). */
const char *next_line(struct lines *lines, const char **bytes, size_t *n, size_t *length) {
    const char *start = *bytes, *end = memchr(start, '\n', *n);
    size_t piece = end ? (size_t)(end - start) + 1 : *n;
    *bytes += piece;
    *n -= piece;
    if (!end || lines->kept) {
        if (lines->kept + piece > sizeof lines->start) piece = sizeof lines->start - lines->kept;
        memcpy(lines->start + lines->kept, start, piece);
        lines->kept += piece;
        if (!end) return NULL;
        start = lines->start;
        piece = lines->kept;
        lines->kept = 0;
    }
    *length = piece - 1;
    if (*length && start[*length - 1] == '\r') --*length;
    return start;
}

static bool is(const char *line, size_t length, const char *name) {
    size_t n = strlen(name);
    return length >= n && !strncasecmp(line, name, n);
}

static bool has(const char *line, size_t length, const char *word) { return memmem(line, length, word, strlen(word)); }

void message_begin(struct message *m, bool is_answer) {
    m->state = FIRST;
    m->is_answer = is_answer;
    m->chunked = m->event_stream = false;
    m->status = 0;
    m->length = -1;
    m->left = 0;
    m->lines.kept = 0;
}

static void first_line(struct message *m, const char *line, size_t length) {
    m->state = FIELD;
    if (!m->is_answer) return;
    if (length < 12 || !is(line, length, "HTTP/1.1 ")) m->state = BAD;
    else m->status = atoi(line + 9);
}

static void head_ended(struct message *m) {
    if (m->chunked) m->state = CHUNK_SIZE;
    else if (m->length > 0) m->state = BODY, m->left = m->length;
    else m->state = m->length == 0 || !m->is_answer ? WHOLE : BAD;
}

static void field(struct message *m, const char *line, size_t length) {
    if (!length) head_ended(m);
    else if (is(line, length, "content-length:")) m->length = atol(line + 15);
    else if (is(line, length, "transfer-encoding:")) m->chunked = has(line, length, "chunked");
    else if (is(line, length, "content-type:")) m->event_stream = has(line, length, "text/event-stream");
}

static void chunk_size(struct message *m, const char *line) {
    char *end;
    m->left = strtol(line, &end, 16);
    if (end == line || m->left < 0) m->state = BAD;
    else m->state = m->left ? CHUNK : TRAILER;
}

/* Takes bytes until the message is WHOLE or BAD; gives how many it took. */
size_t message_feed(struct message *m, const char *bytes, size_t n, void (*body)(void *, const char *, size_t), void *owner) {
    size_t all = n;
    while (n && m->state != WHOLE && m->state != BAD) {
        if (m->state == BODY || m->state == CHUNK) {
            size_t piece = n < (size_t)m->left ? n : (size_t)m->left;
            body(owner, bytes, piece);
            bytes += piece;
            n -= piece;
            m->left -= piece;
            if (!m->left) m->state = m->state == BODY ? WHOLE : CHUNK_END;
            continue;
        }
        size_t length;
        const char *line = next_line(&m->lines, &bytes, &n, &length);
        if (!line) break;
        switch (m->state) {
        case FIRST: first_line(m, line, length); break;
        case FIELD: field(m, line, length); break;
        case CHUNK_SIZE: chunk_size(m, line); break;
        case CHUNK_END: m->state = length ? BAD : CHUNK_SIZE; break;
        case TRAILER: m->state = length ? TRAILER : WHOLE; break;
        default: break;
        }
    }
    return all - n;
}
