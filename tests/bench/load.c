/* Both ends of a benchmark in one thread: the provider behind a proxy, and the clients in front of it.
 *
 *   load PATH NAME=NUMBER...
 *
 *   port         where the proxy listens (or the provider itself: what the program alone can do)
 *   upstream     where the provider listens
 *   connections  how many requests are open at a time; one that is answered is sent again
 *   stream       1: the requests ask for a stream, 0: for JSON
 *   events       events of a stream                          interval_us  time between two of them
 *   posts        connections that post 20 MB bodies besides
 *   ping_us      after so much silence the proxy has to send a ping; 0: none is expected, and none is an error
 *   warm_ms      time between the head of the first answer on the last connection and the measured window
 *   measure_ms   the window
 *   pid          the proxy's; 0: not measured
 *   virtual_key  1: the clients' bearer is the virtual key sk-bf-bench
 *   spin         1: look again at once when nothing is ready, 0: sleep until something is
 *
 * It prints one JSON object. All counts but the last four are of the window:
 *   seconds, answers, events, events_sent, pings, posts, post_bytes (of one body)
 *   cpu_ns       of the proxy, by its process clock: all threads, those that ended too
 *   resident     bytes of the proxy at the end of the window
 *   waited, load_waited: shares of the window in which the proxy, or this program, was ready but others had its core
 *   busy         this program's share of time that was not spent on waiting (or, with spin, on looking in vain)
 *   fewest_open  streams open at the same time: the least there was, a stream being open from its answer's head on
 *   answer_us    p50, p99, max: from the request to the end of its answer
 *   delay_us     p50, p99, max: from upstream's write of an event to its arrival
 *   ping_late_us p50, p99, max: silence before a ping, less ping_us
 *   connections, requests: those that reached upstream; errors, first_error
 *
 * Why one process: two on one core take turns by the scheduler's time slices, and a delay is then theirs.
 * Why spin: a write to a sleeping process wakes its core by an interrupt, which costs the writer more than the write
 * itself. A slow proxy would find its peer asleep more often than a fast one, and pay for that.
 */
#include "load.h"

#include <dirent.h>
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

enum { POST_BYTES = 20000000, READY = 512, OPEN_SECONDS = 60, FINISH_SECONDS = 10, OPEN_STEP_NS = 1000000 };

struct options options = {.connections = 1, .events = 100, .interval_us = 20000, .warm_ms = 1000, .measure_ms = 3000, .spin = 1};
struct counts counts;
bool counting, finishing;
static int poller;
static long errors;
static char first_error[200];

long long now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

void *allocated(void *old, size_t bytes) {
    void *memory = realloc(old, bytes);
    if (!memory) abort();
    return memory;
}

void sample(struct samples *samples, double us) {
    if (samples->count == samples->room)
        samples->values = allocated(samples->values, (samples->room = samples->room * 2 + 4096) * sizeof *samples->values);
    samples->values[samples->count++] = (float)us;
}

void error_seen(const char *format, ...) {
    if (errors++) return;
    va_list values;
    va_start(values, format);
    vsnprintf(first_error, sizeof first_error, format, values);
    va_end(values);
}

void watch(struct source *source, unsigned bits, bool first) {
    struct epoll_event event = {.events = bits, .data.ptr = source};
    if (epoll_ctl(poller, first ? EPOLL_CTL_ADD : EPOLL_CTL_MOD, source->fd, &event)) {
        perror("epoll_ctl (too few descriptors?)");
        exit(1);
    }
}

/* --- the proxy, seen from outside --- */

static long long cpu_ns(void) {
    clockid_t clock;
    struct timespec t;
    if (!options.pid) return 0;
    if (clock_getcpuclockid((pid_t)options.pid, &clock) || clock_gettime(clock, &t)) {
        error_seen("the proxy's process is gone");
        return 0;
    }
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static long resident(void) {
    char path[64];
    long pages = 0;
    snprintf(path, sizeof path, "/proc/%ld/statm", options.pid);
    FILE *file = options.pid ? fopen(path, "r") : NULL;
    if (!file) return 0;
    if (fscanf(file, "%*d %ld", &pages) != 1) pages = 0;
    fclose(file);
    return pages * sysconf(_SC_PAGESIZE);
}

/* Nanoseconds that a process's threads were ready to run while another ran on their core. */
static long long waited_ns(const char *process) {
    char path[300];
    long long all = 0, one;
    snprintf(path, sizeof path, "/proc/%s/task", process);
    DIR *tasks = opendir(path);
    for (struct dirent *entry; tasks && (entry = readdir(tasks));) {
        snprintf(path, sizeof path, "/proc/%s/task/%.16s/schedstat", process, entry->d_name);
        FILE *file = fopen(path, "r");
        if (file && fscanf(file, "%*d %lld", &one) == 1) all += one;
        if (file) fclose(file);
    }
    if (tasks) closedir(tasks);
    return all;
}

/* --- the loop --- */

static long long idle_ns;

/* Handles what is ready; waits at most until `until`. */
static void turn(long long until) {
    struct epoll_event ready[READY];
    long long now = now_ns(), next = upstream_send_due(now), wait = (next < until ? next : until) - now_ns();
    struct timespec timeout = {0};
    if (!options.spin && wait > 0) timeout = (struct timespec){wait / 1000000000, wait % 1000000000};
    long long before = now_ns();
    int n = epoll_pwait2(poller, ready, READY, &timeout, NULL);
    if (n < 0 && errno != EINTR) {
        perror("epoll_pwait2");
        exit(1);
    }
    if (n <= 0 && options.spin) sched_yield();
    if (counting && (n <= 0 || !options.spin)) idle_ns += now_ns() - before;
    for (int i = 0; i < n; i++) {
        struct source *source = ready[i].data.ptr;
        source->ready(source, ready[i].events);
    }
}

static void open_all(void) {
    long long end = now_ns() + OPEN_SECONDS * 1000000000LL;
    while (!downstream_open() && now_ns() < end) turn(now_ns() + OPEN_STEP_NS);
    if (!downstream_open()) error_seen("not every connection had an answer after %d s", OPEN_SECONDS);
}

/* Lets what was asked be answered: a request still inside the proxy would reach the upstream of the next run. */
static void finish(void) {
    long long end = now_ns() + FINISH_SECONDS * 1000000000LL;
    finishing = true;
    while (pending_requests && now_ns() < end) turn(end);
    if (pending_requests) error_seen("%ld requests had no answer after %d s", pending_requests, FINISH_SECONDS);
    else if (upstream_requests != requests_sent)
        error_seen("of %ld requests, %ld reached upstream", requests_sent, upstream_requests);
}

static void run_until(long long end) {
    while (now_ns() < end) turn(end);
}

/* --- the report --- */

static int compare(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static void print_samples(const char *name, struct samples *samples) {
    size_t n = samples->count;
    if (!n) {
        printf("\"%s\":null,", name);
        return;
    }
    qsort(samples->values, n, sizeof *samples->values, compare);
    float *v = samples->values;
    printf("\"%s\":[%.1f,%.1f,%.1f],", name, v[n / 2], v[(size_t)(.99 * (double)(n - 1))], v[n - 1]);
}

static void read_options(int argc, char **argv) {
    static const struct { const char *name; long *value; } known[] = {
        {"port", &options.port}, {"upstream", &options.upstream}, {"connections", &options.connections},
        {"posts", &options.posts}, {"stream", &options.stream}, {"events", &options.events},
        {"interval_us", &options.interval_us}, {"ping_us", &options.ping_us}, {"warm_ms", &options.warm_ms},
        {"measure_ms", &options.measure_ms}, {"spin", &options.spin}, {"pid", &options.pid},
        {"virtual_key", &options.virtual_key},
    };
    for (int i = 2; i < argc; i++) {
        size_t at = 0, n = strcspn(argv[i], "=");
        while (at < sizeof known / sizeof *known && (strlen(known[at].name) != n || strncmp(argv[i], known[at].name, n))) at++;
        if (at == sizeof known / sizeof *known || !argv[i][n]) {
            fprintf(stderr, "not an option: %s\n", argv[i]);
            exit(2);
        }
        *known[at].value = atol(argv[i] + n + 1);
    }
    if (!options.port || !options.upstream || options.events < 6) {
        fprintf(stderr, "usage: load PATH port=N upstream=N ... (see load.c; a stream has 6 events at least)\n");
        exit(2);
    }
}

int main(int argc, char **argv) {
    read_options(argc, argv);
    signal(SIGPIPE, SIG_IGN);
    poller = epoll_create1(0);
    downstream_prepare(argv[1], POST_BYTES);
    upstream_listen();
    open_all();
    run_until(now_ns() + options.warm_ms * 1000000);

    fewest_open = open_streams;
    counting = true;
    char process[24];
    snprintf(process, sizeof process, "%ld", options.pid);
    long long waited = waited_ns(process), load_waited = waited_ns("self");
    long long begin = now_ns(), cpu_before = cpu_ns();
    run_until(begin + options.measure_ms * 1000000);
    long long cpu = cpu_ns() - cpu_before, took = now_ns() - begin;
    counting = false;
    long fewest = fewest_open;
    waited = waited_ns(process) - waited;
    load_waited = waited_ns("self") - load_waited;
    long memory = resident();

    if (!(options.stream ? counts.events : counts.answers)) error_seen("nothing came in the whole window");
    finish();
    printf("{\"seconds\":%.6f,\"answers\":%ld,\"events\":%ld,\"events_sent\":%ld,\"pings\":%ld,\"posts\":%ld,\"post_bytes\":%zu,",
           (double)took / 1e9, counts.answers, counts.events, counts.events_sent, counts.pings, counts.posts, requests[POST].body_size);
    printf("\"cpu_ns\":%lld,\"waited\":%.4f,\"load_waited\":%.4f,\"busy\":%.3f,\"resident\":%ld,\"fewest_open\":%ld,", cpu,
           (double)waited / (double)took, (double)load_waited / (double)took, 1 - (double)idle_ns / (double)took, memory, fewest);
    print_samples("answer_us", &counts.answer_us);
    print_samples("delay_us", &counts.delay_us);
    print_samples("ping_late_us", &counts.ping_late_us);
    printf("\"connections\":%ld,\"requests\":%ld,\"errors\":%ld,\"first_error\":\"%s\"}\n", upstream_connections,
           upstream_requests, errors, first_error);
    return 0;
}
