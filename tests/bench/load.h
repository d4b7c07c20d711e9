/* What the parts of the load program share; load.c says what the whole does. */
#ifndef LOAD_H
#define LOAD_H

#include <stdbool.h>
#include <stddef.h>

/* --- load.c: options, clock, loop, what was counted --- */

struct options {
    long port, upstream, connections, posts, stream, events, interval_us, ping_us, warm_ms, measure_ms, spin, pid, virtual_key;
};
extern struct options options;

/* What the loop waits for. `ready` is called with epoll's event bits. */
struct source {
    int fd;
    void (*ready)(struct source *, unsigned bits);
};

/* Samples of one kind, in microseconds; grows as needed. */
struct samples {
    float *values;
    size_t count, room;
};

struct counts {
    long answers, events, events_sent, pings, posts;
    struct samples answer_us, delay_us, ping_late_us;
};
extern struct counts counts; /* of the measured window only */
extern bool counting;        /* inside the measured window */
extern bool finishing;       /* after it: nothing is asked any more */

long long now_ns(void);
void sample(struct samples *, double us);
void watch(struct source *, unsigned bits, bool first);
void error_seen(const char *format, ...) __attribute__((format(printf, 1, 2)));
void *allocated(void *old, size_t bytes);

/* --- message.c: HTTP/1.1, read in pieces of any size --- */

struct lines {
    size_t kept;
    char start[1024]; /* of a line whose end has not come yet */
};
const char *next_line(struct lines *, const char **bytes, size_t *n, size_t *length);

struct message {
    enum { FIRST, FIELD, BODY, CHUNK_SIZE, CHUNK, CHUNK_END, TRAILER, WHOLE, BAD } state;
    bool is_answer, chunked, event_stream;
    int status;
    long length; /* Content-Length, -1 without one */
    long left;   /* bytes of the body or of the chunk still to come */
    struct lines lines;
};
void message_begin(struct message *, bool is_answer);
size_t message_feed(struct message *, const char *bytes, size_t n, void (*body)(void *, const char *, size_t), void *owner);

/* --- downstream.c: the clients --- */

struct request {
    char *bytes; /* head and body */
    size_t size;
    const char *body;
    size_t body_size;
    bool stream;
};
enum { POST = 2, REQUESTS = 3 };
extern struct request requests[REQUESTS]; /* JSON, stream, large post */
extern long open_streams, fewest_open, requests_sent;
extern long pending_requests; /* JSON that is not answered, streams without a head */

void downstream_prepare(const char *path, size_t post_bytes);
bool downstream_open(void); /* opens some more; true when every connection has the head of its first answer */

/* --- upstream.c: the provider --- */

extern const char json_answer[];
extern long upstream_connections, upstream_requests;

const char *event_kind(long number);
void upstream_listen(void);
long long upstream_send_due(long long now); /* sends what is due; gives when the next event is, in ns */

#endif
