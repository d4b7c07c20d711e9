/* Loads a proxy and measures what it adds. One thread, epoll, loopback only.
 *
 *   load json   PORT PATH CONNECTIONS SECONDS
 *   load stream PORT PATH STREAMS SECONDS
 *
 * Keeps that many requests open on keep-alive connections; a finished one is sent again. The body is a
 * 2 KB prompt. After one second of warm-up it counts, and prints one JSON object:
 *   units         JSON answers, or events, in the whole run, warm-up included (to divide CPU time by)
 *   per_second    units per second after the warm-up
 *   delay_us      median and 99th percentile: request to answer (json), or upstream's write of an event
 *                 to its arrival here (stream; the event carries its send time, "t":<19 digits>)
 *   errors        connections that broke, answers that were not 200
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { PROMPT = 2000, TAIL = 64, MAX_DELAYS = 1 << 24 };
typedef struct { int fd; long long sent; char tail[TAIL]; int tail_len; } conn;
static conn *all;
static char *request;
static int request_len, ep, port, streaming;
static double *delays;
static size_t n_delays;
static long units, warm_units, errors;

static long long now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}
static int compare(const void *a, const void *b) {
    double x = *(double *)a, y = *(double *)b;
    return x < y ? -1 : x > y;
}
static double percentile(double p) { return n_delays ? delays[(size_t)(p * (n_delays - 1))] : -1; }

static void send_request(conn *c) {
    c->sent = now_ns();
    c->tail_len = 0;
    if (write(c->fd, request, request_len) != request_len) errors++;
}
static void open_conn(conn *c) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    int one = 1;
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connect(c->fd, (void *)&a, sizeof a)) { perror("connect"); exit(1); }
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
    epoll_ctl(ep, EPOLL_CTL_ADD, c->fd, &e);
    send_request(c);
}
static void unit(long long at, long long begin) {
    units++;
    if (begin && at > begin) {
        warm_units++;
    }
}
static void on_bytes(conn *c, char *buf, size_t len, long long t, long long warm) {
    if (!streaming) {
        /* the upstream's JSON answer is one small message; it ends with this and arrives whole or split */
        if (buf[len - 1] != '}' && !(len >= 5 && !memcmp(buf + len - 5, "0\r\n\r\n", 5))) {
            size_t keep = len < TAIL ? len : TAIL;
            memmove(c->tail, buf + len - keep, keep);
            c->tail_len = keep;
            return;
        }
        if (!memmem(buf, len < 16 ? len : 16, " 200 ", 5) && c->tail_len == 0) errors++;
        unit(t, warm);
        if (t > warm && n_delays < MAX_DELAYS) delays[n_delays++] = (t - c->sent) / 1e3;
        send_request(c);
        return;
    }
    char *p = buf, *stop = buf + len;
    for (;;) {
        char *q = memmem(p, stop - p, "\"t\":", 4);
        if (!q || q + 23 > stop) break;
        unit(t, warm);
        if (t > warm && n_delays < MAX_DELAYS) delays[n_delays++] = (t - atoll(q + 4)) / 1e3;
        p = q + 23;
    }
    if (len >= 5 && !memcmp(stop - 5, "0\r\n\r\n", 5)) { send_request(c); return; }
    size_t keep = stop - p < TAIL ? stop - p : TAIL;
    memmove(c->tail, stop - keep, keep);
    c->tail_len = keep;
}
int main(int argc, char **argv) {
    if (argc != 6) { fprintf(stderr, "usage: load json|stream PORT PATH COUNT SECONDS\n"); return 2; }
    streaming = !strcmp(argv[1], "stream");
    port = atoi(argv[2]);
    int n = atoi(argv[4]), seconds = atoi(argv[5]);
    char prompt[PROMPT + 1];
    memset(prompt, 'y', PROMPT);
    prompt[PROMPT] = 0;
    char *body;
    int body_len = asprintf(&body, "{\"max_tokens\":256,\"messages\":[{\"role\":\"user\",\"content\":\"%s\"}],\"model\":\"claude-2\"%s}",
        prompt, streaming ? ",\"stream\":true" : "");
    request_len = asprintf(&request,
        "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAccept-Encoding: gzip, deflate\r\nConnection: keep-alive\r\n"
        "Accept: application/json\r\nContent-Type: application/json\r\nUser-Agent: Anthropic/Python 2.12.0\r\n"
        "X-Stainless-Lang: python\r\nX-Stainless-Package-Version: 2.12.0\r\nX-Stainless-OS: Linux\r\n"
        "X-Stainless-Arch: x64\r\nX-Stainless-Runtime: CPython\r\nX-Stainless-Async: false\r\n"
        "x-stainless-retry-count: 0\r\nx-stainless-timeout: 600\r\nAuthorization: Bearer bench\r\n"
        "anthropic-version: 2023-06-01\r\nContent-Length: %d\r\n\r\n%s", argv[3], port, body_len, body);
    all = calloc(n, sizeof *all);
    delays = malloc(MAX_DELAYS * sizeof *delays);
    ep = epoll_create1(0);
    for (int i = 0; i < n; i++) open_conn(&all[i]);
    long long warm = now_ns() + 1000000000LL, end = warm + seconds * 1000000000LL;
    static char buf[1 << 18];
    struct epoll_event ready[512];
    while (now_ns() < end) {
        int k = epoll_wait(ep, ready, 512, 100);
        for (int i = 0; i < k; i++) {
            conn *c = ready[i].data.ptr;
            memcpy(buf, c->tail, c->tail_len);
            ssize_t r = recv(c->fd, buf + c->tail_len, sizeof buf - TAIL, MSG_DONTWAIT);
            if (r <= 0) {
                if (r < 0 && errno == EAGAIN) continue;
                errors++;
                close(c->fd);
                open_conn(c);
                continue;
            }
            on_bytes(c, buf, c->tail_len + r, now_ns(), warm);
        }
    }
    qsort(delays, n_delays, sizeof *delays, compare);
    printf("{\"units\":%ld,\"per_second\":%.0f,\"delay_us\":[%.0f,%.0f],\"errors\":%ld}\n",
        units, warm_units / (double)seconds, percentile(.5), percentile(.99), errors);
    return 0;
}
