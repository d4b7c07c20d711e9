/* The clients: keep requests open through the proxy, and read every answer to its end.
 *
 * Each connection sends its request again when its answer is whole. An answer counts only if it has status 200, and
 * either the provider's JSON, byte for byte, or the provider's events, each once and in order, and nothing after
 * message_stop. Pings may stand between events; they are counted apart. Whatever else comes is an error, and its
 * connection is not opened again.
 */
#include "load.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    UNANSWERED = 100,        /* connections that may be without any answer at a time; a listen backlog is short */
    PIECE = 65536,           /* the most that one turn of the loop reads or writes on a connection */
    PROMPT_BYTES = 2000,
    POST_MESSAGE_BYTES = 16384,
    SPREAD_SECONDS = 10,     /* a stream longer than this outlasts the run */
};

struct client {
    struct source source;
    const struct request *request;
    size_t sent; /* bytes of the request */
    bool sending;
    bool answered;             /* the head of some answer has come */
    bool pending;              /* counted in pending_requests */
    bool open;                 /* inside a stream */
    bool wrong;                /* the answer has something that it should not have */
    struct message answer;
    size_t seen;               /* bytes of a JSON answer */
    struct lines lines;        /* of a stream */
    char kind[32];             /* of the event that is being read, empty between events */
    long number;               /* of the next event */
    long pings;                /* since the last event */
    long long stamp, asked, silent_since, now; /* ns */
};

struct request requests[REQUESTS];
long open_streams, fewest_open, requests_sent, pending_requests;
static struct client *clients;
static long opened, unanswered;

/* --- what is sent --- */

/* A JSON string's inside, about as dense in escapes as code or mail is. */
static char *text(char *at, size_t n) {
    static const char sentence[] = "The \\\"quick\\\" brown fox, of whom much was said, jumps over the lazy dog \xe2\x80\x93 again.\\n";
    for (size_t done = 0; done < n; done += sizeof sentence - 1) at = mempcpy(at, sentence, sizeof sentence - 1);
    return at;
}

static void prepare(struct request *request, const char *path, size_t bytes, size_t each, bool stream) {
    char *body = allocated(NULL, bytes + bytes / 8 + 2 * each + 4096), *at = body;
    at = stpcpy(at, "{\"max_tokens\":1024,\"messages\":[");
    for (size_t i = 0; i == 0 || (size_t)(at - body) < bytes; i++) {
        at = stpcpy(at, i ? "," : "");
        at = stpcpy(at, i % 2 ? "{\"role\":\"assistant\",\"content\":\"" : "{\"role\":\"user\",\"content\":\"");
        at = stpcpy(text(at, each), "\"}");
    }
    at = stpcpy(at, stream ? "],\"model\":\"claude-2\",\"stream\":true}" : "],\"model\":\"claude-2\"}");
    request->body_size = at - body;
    request->stream = stream;
    request->bytes = allocated(NULL, request->body_size + 4096);
    int head = sprintf(request->bytes,
        "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%ld\r\nAccept-Encoding: gzip, deflate\r\nConnection: keep-alive\r\n"
        "Accept: application/json\r\nContent-Type: application/json\r\nUser-Agent: Anthropic/Python 2.12.0\r\n"
        "X-Stainless-Lang: python\r\nX-Stainless-Package-Version: 2.12.0\r\nX-Stainless-OS: Linux\r\n"
        "X-Stainless-Arch: x64\r\nX-Stainless-Runtime: CPython\r\nX-Stainless-Async: false\r\n"
        "x-stainless-retry-count: 0\r\nx-stainless-timeout: 600\r\nAuthorization: Bearer %sbench\r\n"
        "anthropic-version: 2023-06-01\r\nContent-Length: %zu\r\n\r\n",
        path, options.port, options.virtual_key ? "sk-bf-" : "", request->body_size);
    request->body = memcpy(request->bytes + head, body, request->body_size);
    request->size = head + request->body_size;
    free(body);
}

void downstream_prepare(const char *path, size_t post_bytes) {
    prepare(&requests[0], path, 0, PROMPT_BYTES, false);
    prepare(&requests[1], path, 0, PROMPT_BYTES, true);
    if (options.posts) prepare(&requests[POST], path, post_bytes, POST_MESSAGE_BYTES, false);
    clients = allocated(NULL, (options.connections + options.posts) * sizeof *clients);
    memset(clients, 0, (options.connections + options.posts) * sizeof *clients);
}

/* --- a connection --- */

static void settled(struct client *c) {
    if (c->pending) pending_requests--;
    c->pending = false;
}

static void fail(struct client *c, const char *why) {
    error_seen("%s (%s, status %d, event %ld)", why, c->request->stream ? "stream" : "JSON", c->answer.status, c->number);
    if (!c->answered) unanswered--;
    c->answered = true;
    settled(c);
    if (c->open) open_streams--;
    c->open = false;
    close(c->source.fd);
    c->source.fd = -1;
}

/* Sends a piece of the request; the loop calls again when there is room for the rest. */
static void send_more(struct client *c) {
    size_t left = c->request->size - c->sent;
    ssize_t n = send(c->source.fd, c->request->bytes + c->sent, left < PIECE ? left : PIECE, MSG_NOSIGNAL);
    if (n < 0 && errno != EAGAIN) {
        fail(c, strerror(errno));
        return;
    }
    if (n > 0) c->sent += n;
    bool sending = c->sent < c->request->size;
    if (sending != c->sending) watch(&c->source, sending ? EPOLLIN | EPOLLOUT : EPOLLIN, false);
    c->sending = sending;
}

static void ask(struct client *c) {
    message_begin(&c->answer, true);
    c->lines.kept = c->sent = c->seen = 0;
    c->kind[0] = 0;
    c->wrong = false;
    c->number = c->pings = 0;
    c->asked = now_ns();
    requests_sent++;
    pending_requests++;
    c->pending = true;
    send_more(c);
}

/* --- answers --- */

static void on_ping(struct client *c) {
    c->pings++;
    if (!counting) return;
    counts.pings++;
    if (options.ping_us) sample(&counts.ping_late_us, (double)(c->now - c->silent_since) / 1e3 - (double)options.ping_us);
}

static bool on_event(struct client *c) {
    /* The first event comes with the head, and the next after any part of an interval. */
    bool pings_due = options.ping_us && c->number > 1;
    bool right = !strcmp(c->kind, event_kind(c->number)) && (!pings_due || c->pings == options.interval_us / options.ping_us);
    c->number++;
    c->pings = 0;
    if (counting) {
        counts.events++;
        sample(&counts.delay_us, (double)(c->now - c->stamp) / 1e3);
    }
    return right;
}

/* One line of a stream; false if it does not belong there. */
static bool on_line(struct client *c, const char *line, size_t n) {
    bool ping = !strcmp(c->kind, "ping");
    if (!n) {
        bool right = ping || (c->kind[0] && on_event(c));
        if (ping) on_ping(c);
        c->silent_since = c->now;
        c->kind[0] = 0;
        return right;
    }
    if (n > 7 && n < 7 + sizeof c->kind && !memcmp(line, "event: ", 7)) {
        bool first = !c->kind[0];
        memcpy(c->kind, line + 7, n - 7);
        c->kind[n - 7] = 0;
        return first;
    }
    if (n < 6 || memcmp(line, "data: ", 6)) return false;
    if (ping) return true;
    const char *stamp = memmem(line, n, "\"t\":", 4);
    /* 19 digits, then ,"n": and the number and more: all inside the line */
    if (!stamp || stamp + 4 + 19 + 5 >= line + n || memcmp(stamp + 23, ",\"n\":", 5)) return false;
    c->stamp = atoll(stamp + 4);
    return atol(stamp + 28) == c->number;
}

static void on_body(void *owner, const char *bytes, size_t n) {
    struct client *c = owner;
    if (c->answer.status != 200 || c->answer.event_stream != c->request->stream) {
        c->wrong = true;
    } else if (!c->request->stream) {
        size_t all = strlen(json_answer);
        if (c->seen + n > all || memcmp(json_answer + c->seen, bytes, n)) c->wrong = true;
        c->seen += n;
    } else {
        size_t length;
        for (const char *line; (line = next_line(&c->lines, &bytes, &n, &length));)
            if (!on_line(c, line, length)) c->wrong = true;
    }
}

static void on_answer(struct client *c) {
    bool whole = c->request->stream ? c->number == options.events && !c->kind[0] && !c->lines.kept
                                    : c->seen == strlen(json_answer);
    if (!whole || c->answer.status != 200 || c->sending) {
        fail(c, c->sending ? "an answer before the request was sent" : "an answer that ends well is not whole");
        return;
    }
    if (c->open) open_streams--;
    c->open = false;
    if (counting) {
        if (c->request == &requests[POST]) counts.posts++;
        else counts.answers++;
        if (!c->request->stream) sample(&counts.answer_us, (double)(c->now - c->asked) / 1e3);
    }
    settled(c);
    if (!finishing) ask(c);
}

static void on_head(struct client *c) {
    if (!c->answered) unanswered--;
    c->answered = true;
    c->silent_since = c->now;
    if (!c->request->stream) return;
    settled(c);
    open_streams++;
    c->open = true;
}

static void on_ready(struct source *source, unsigned bits) {
    static char buffer[PIECE];
    struct client *c = (struct client *)source;
    if (bits & EPOLLOUT) send_more(c);
    if (!(bits & ~EPOLLOUT) || source->fd < 0) return;
    ssize_t n = recv(source->fd, buffer, sizeof buffer, 0);
    if (n < 0 && errno == EAGAIN) return;
    c->now = now_ns();
    if (n <= 0) {
        fail(c, n ? strerror(errno) : "the proxy closed the connection");
        return;
    }
    bool in_head = c->answer.state <= FIELD;
    size_t used = message_feed(&c->answer, buffer, n, on_body, c);
    if (in_head && c->answer.state > FIELD) on_head(c);
    if (c->wrong || c->answer.state == BAD) fail(c, "a wrong answer");
    else if (used != (size_t)n) fail(c, "bytes after an answer");
    else if (c->answer.state == WHOLE) on_answer(c);
    if (open_streams < fewest_open) fewest_open = open_streams;
}

/* How many connections may be open by now. Streams that end begin again at once, so those that begin together would
 * go on to begin together, and the proxy would have their requests in bursts: their begins are spread over one
 * stream's time. Streams that outlast the run begin as fast as they are answered. */
static long open_by_now(void) {
    static long long first;
    long all = options.connections + options.posts;
    double stream_ns = (double)options.events * (double)options.interval_us * 1e3;
    long long now = now_ns();
    if (!first) first = now;
    if (!options.stream || stream_ns > SPREAD_SECONDS * 1e9) return all;
    double part = (double)(now - first) / stream_ns * (double)options.connections;
    return part < (double)options.connections ? (long)part : all;
}

bool downstream_open(void) {
    long may_open = open_by_now();
    for (; opened < may_open && unanswered < UNANSWERED; opened++, unanswered++) {
        struct sockaddr_in proxy = {.sin_family = AF_INET, .sin_port = htons(options.port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        struct client *c = &clients[opened];
        int one = 1;
        c->source = (struct source){socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), on_ready};
        c->request = &requests[opened < options.connections ? options.stream : POST];
        setsockopt(c->source.fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        if (connect(c->source.fd, (void *)&proxy, sizeof proxy) && errno != EINPROGRESS) {
            error_seen("cannot connect: %s", strerror(errno));
            exit(1);
        }
        c->sending = true;
        watch(&c->source, EPOLLIN | EPOLLOUT, true);
        ask(c);
    }
    return opened == options.connections + options.posts && !unanswered;
}
