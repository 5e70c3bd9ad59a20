/* wanem: a wide-area link between two network namespaces, in user space, for kernels without netem.
 *
 *     wanem NAMESPACE_A NAMESPACE_B SEED
 *
 * It opens a TUN device "wan0" in each namespace and carries IPv4 packets between the two: each direction has a bottleneck
 * (rate and a drop-tail queue), then a delay, with random loss. Segmentation offload stays on, so that a 64 KiB packet is
 * read and written at once; loss still falls on single segments of the wire, and such a packet is cut where one is lost.
 * Nobody is configured but the devices: give them addresses and an MTU from outside once "up" was printed.
 *
 * Lines on stdin, each answered on stdout; parameters hold for both directions from the next packet on:
 *     rate MBIT    bits on the wire per second, Ethernet framing included; 0: unlimited
 *     delay MS     one way
 *     loss PERCENT of the segments; 100 cuts the link
 *     queue MS     longest wait for the bottleneck; what would wait longer is dropped
 *     stats        two lines of JSON, one per direction
 * End of stdin or SIGTERM ends it, with a last pair of statistics.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <linux/virtio_net.h>
#include <math.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#define RING_BYTES (256u << 20)  /* in flight per direction: 10 Gbit/s for 0.2 s; memory is used as it is touched */
#define PACKET_BYTES 70000u      /* the largest packet with its header, and slack */
#define FRAME_BYTES 38           /* preamble, Ethernet header, checksum and gap of every segment on a real wire */
#define EARLY_NS 15000           /* delivering this much early costs less than sleeping for it */
#define BATCH 64                 /* packets read from one side before the other has its turn */
#define NEVER 1e18
#define WRAP UINT32_MAX          /* a record of this length: the ring continues at its start */

enum { TCP_SEQ = 4, TCP_OFFSET = 12, TCP_FLAGS = 13, TCP_CHECKSUM = 16, FIN_PSH = 0x09, CWR = 0x80 };

struct settings {
    double rate_bps, delay_ns, loss, queue_ns;
};

struct direction {
    const char *name;
    int in, out;          /* the TUN devices */
    uint8_t *ring;        /* records in order of arrival; head and tail only grow */
    uint64_t head, tail;
    double free_ns;       /* when the bottleneck has sent all it was given */
    double until_loss;    /* segments to let through before the next one is lost */
    double queue_max_ns;  /* since the last statistics */
    uint64_t packets, segments, payload_bytes, lost, dropped;
};

/* Precedes a virtio header and a packet in the ring. */
struct record {
    uint64_t due_ns;
    uint32_t num_bytes, unused;
};

/* A packet as read from a TUN device. `segments` is how many frames it would be on a wire. */
struct packet {
    struct virtio_net_hdr virtio;
    uint8_t *bytes;
    int num_bytes, ip_bytes, header_bytes, payload_bytes, segment_bytes, segments;
};

static struct settings settings = {.queue_ns = NEVER};
static volatile sig_atomic_t stopping;
static uint64_t random_state;

static void fail(const char *what) {
    fprintf(stderr, "wanem: %s: %s\n", what, strerror(errno));
    exit(1);
}

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* In (0, 1). xorshift64: the same losses for the same seed. */
static double random_unit(void) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (double)(random_state >> 11) / 9007199254740992.0 + 1e-17;
}

/* How many segments pass before one is lost: drawn once per loss, not once per segment. */
static double draw_gap(void) {
    if (settings.loss <= 0) return NEVER;
    if (settings.loss >= 1) return 0;
    return floor(log(random_unit()) / log(1 - settings.loss));
}

/* A TUN device in a namespace. This process stays in that namespace; a device works from anywhere. */
static int open_tun(const char *namespace) {
    char path[200];
    snprintf(path, sizeof path, "/var/run/netns/%s", namespace);
    int space = open(path, O_RDONLY);
    if (space < 0 || setns(space, CLONE_NEWNET)) fail(path);
    close(space);
    int tun = open("/dev/net/tun", O_RDWR | O_NONBLOCK);
    if (tun < 0) fail("/dev/net/tun");
    struct ifreq request = {.ifr_name = "wan0"};
    request.ifr_flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR;
    if (ioctl(tun, TUNSETIFF, &request)) fail("TUNSETIFF");
    if (ioctl(tun, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4)) fail("TUNSETOFFLOAD");
    return tun;
}

/* The ones' complement sum of big-endian words, not yet inverted. `num_bytes` is even. */
static uint16_t add_words(const uint8_t *bytes, int num_bytes, uint32_t sum) {
    for (int i = 0; i < num_bytes; i += 2) sum += (uint32_t)(bytes[i] << 8 | bytes[i + 1]);
    while (sum >> 16) sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)sum;
}

static uint16_t get16(const uint8_t *at) { return (uint16_t)(at[0] << 8 | at[1]); }

static void put16(uint8_t *at, uint16_t value) {
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
}

/* Makes the headers of segments [first, end) of a packet true, `header` being a copy of the whole packet's. */
static void correct_headers(uint8_t *header, const struct packet *p, int first, int end, int payload_bytes) {
    uint8_t *tcp = header + p->ip_bytes;
    put16(header + 2, (uint16_t)(p->header_bytes + payload_bytes));
    put16(header + 4, (uint16_t)(get16(header + 4) + first)); /* the IP identification counts segments */
    put16(header + 10, 0);
    put16(header + 10, (uint16_t)~add_words(header, p->ip_bytes, 0));
    uint32_t sequence;
    memcpy(&sequence, tcp + TCP_SEQ, 4);
    sequence = htonl(ntohl(sequence) + (uint32_t)(first * p->segment_bytes));
    memcpy(tcp + TCP_SEQ, &sequence, 4);
    if (end < p->segments) tcp[TCP_FLAGS] &= (uint8_t)~FIN_PSH;
    if (first > 0) tcp[TCP_FLAGS] &= (uint8_t)~CWR;
    /* The kernel finishes the checksum; what it expects in the field is the sum of the pseudo header. */
    uint32_t tcp_bytes = (uint32_t)(p->header_bytes - p->ip_bytes + payload_bytes);
    put16(tcp + TCP_CHECKSUM, add_words(header + 12, 8, IPPROTO_TCP + tcp_bytes));
}

/* Room for a record of that many bytes in one piece, or NULL when too much is in flight. */
static struct record *reserve(struct direction *d, uint32_t num_bytes) {
    uint32_t position = (uint32_t)(d->head % RING_BYTES);
    if (RING_BYTES - position < num_bytes + PACKET_BYTES) {
        ((struct record *)(void *)(d->ring + position))->num_bytes = WRAP;
        d->head += RING_BYTES - position;
        position = 0;
    }
    if (d->head + num_bytes - d->tail > RING_BYTES - 2 * PACKET_BYTES) return NULL;
    d->head += num_bytes;
    return (struct record *)(void *)(d->ring + position);
}

/* Segments [first, end) of a packet, to be delivered at `due_ns`. */
static void enqueue(struct direction *d, const struct packet *p, int first, int end, uint64_t due_ns) {
    int from = first * p->segment_bytes, to = end * p->segment_bytes;
    if (to > p->payload_bytes) to = p->payload_bytes;
    struct virtio_net_hdr virtio = p->virtio;
    uint32_t num_bytes = (uint32_t)((int)sizeof virtio + p->header_bytes + to - from);
    struct record *record = reserve(d, ((uint32_t)sizeof *record + num_bytes + 7) & ~7u);
    if (!record) {
        d->dropped += (uint64_t)(end - first);
        return;
    }
    record->due_ns = due_ns;
    record->num_bytes = num_bytes;
    uint8_t *bytes = (uint8_t *)(record + 1) + sizeof virtio;
    memcpy(bytes, p->bytes, (size_t)p->header_bytes);
    memcpy(bytes + p->header_bytes, p->bytes + p->header_bytes + from, (size_t)(to - from));
    if (end - first < p->segments) {
        correct_headers(bytes, p, first, end, to - from);
        if (end - first == 1) virtio.gso_type = VIRTIO_NET_HDR_GSO_NONE, virtio.gso_size = 0;
    }
    memcpy(record + 1, &virtio, sizeof virtio);
}

/* Enqueues what is left of a packet after random loss. */
static void lose_some(struct direction *d, const struct packet *p, uint64_t due_ns) {
    int next = 0;
    while (next < p->segments) {
        int left = p->segments - next;
        int pass = d->until_loss >= left ? left : (int)d->until_loss;
        if (pass > 0) enqueue(d, p, next, next + pass, due_ns);
        d->until_loss -= pass;
        next += pass;
        if (next == p->segments) return;
        d->lost++;
        d->until_loss = draw_gap();
        next++;
    }
}

/* When the packet leaves the bottleneck, or a negative number when the queue is full. */
static double through_bottleneck(struct direction *d, const struct packet *p, double now) {
    if (settings.rate_bps <= 0) return now;
    double start = d->free_ns > now ? d->free_ns : now;
    if (start - now > settings.queue_ns) return -1;
    if (start - now > d->queue_max_ns) d->queue_max_ns = start - now;
    double wire_bytes = p->num_bytes + (p->segments - 1.0) * p->header_bytes + p->segments * (double)FRAME_BYTES;
    d->free_ns = start + wire_bytes * 8e9 / settings.rate_bps;
    return d->free_ns;
}

/* Fills in a packet from what a TUN device gave; 0 when it is not whole IPv4. */
static int parse(struct packet *p, uint8_t *bytes, int num_bytes) {
    memcpy(&p->virtio, bytes, sizeof p->virtio);
    p->bytes = bytes + sizeof p->virtio;
    p->num_bytes = num_bytes - (int)sizeof p->virtio;
    if (p->num_bytes < 20 || p->bytes[0] >> 4 != 4) return 0;
    p->ip_bytes = (p->bytes[0] & 15) * 4;
    p->header_bytes = p->ip_bytes;
    int is_tcp = p->bytes[9] == IPPROTO_TCP && p->num_bytes >= p->ip_bytes + 20;
    if (is_tcp) p->header_bytes += (p->bytes[p->ip_bytes + TCP_OFFSET] >> 4) * 4;
    p->payload_bytes = p->num_bytes - p->header_bytes;
    if (p->payload_bytes < 0) return 0;
    p->segment_bytes = p->payload_bytes;
    p->segments = 1;
    if (is_tcp && p->virtio.gso_type && p->virtio.gso_size) {
        p->segment_bytes = p->virtio.gso_size;
        p->segments = (p->payload_bytes + p->segment_bytes - 1) / p->segment_bytes;
    }
    return p->segments > 0;
}

/* Takes a batch of packets off a device and onto the link. */
static void ingest(struct direction *d) {
    static uint8_t buffer[PACKET_BYTES];
    for (int i = 0; i < BATCH; i++) {
        struct packet p;
        ssize_t num_bytes = read(d->in, buffer, sizeof buffer);
        if (num_bytes < (ssize_t)sizeof p.virtio) return;
        if (!parse(&p, buffer, (int)num_bytes)) continue;
        d->packets++;
        d->segments += (uint64_t)p.segments;
        d->payload_bytes += (uint64_t)p.payload_bytes;
        double departure = through_bottleneck(d, &p, (double)now_ns());
        if (departure < 0)
            d->dropped += (uint64_t)p.segments;
        else
            lose_some(d, &p, (uint64_t)(departure + settings.delay_ns));
    }
}

/* Delivers what is due. Returns ns until the next is, or -1 when nothing is in flight. */
static int64_t drain(struct direction *d) {
    while (d->tail != d->head) {
        uint32_t position = (uint32_t)(d->tail % RING_BYTES);
        struct record *record = (struct record *)(void *)(d->ring + position);
        if (record->num_bytes == WRAP) {
            d->tail += RING_BYTES - position;
            continue;
        }
        int64_t wait_ns = (int64_t)(record->due_ns - now_ns());
        if (wait_ns > EARLY_NS) return wait_ns;
        /* Another error than EAGAIN means that the device is down: then the packet is gone, as on a dead link. */
        if (write(d->out, record + 1, record->num_bytes) < 0 && errno == EAGAIN) return EARLY_NS;
        d->tail += (sizeof *record + record->num_bytes + 7) & ~7u;
    }
    return -1;
}

static void print_stats(struct direction *directions) {
    double now = (double)now_ns();
    for (int i = 0; i < 2; i++) {
        struct direction *d = &directions[i];
        double queue_ns = d->free_ns > now ? d->free_ns - now : 0;
        printf("{\"direction\": \"%s\", \"packets\": %lu, \"segments\": %lu, \"payload_bytes\": %lu, \"lost\": %lu,"
               " \"dropped\": %lu, \"queue_ms\": %.3f, \"queue_max_ms\": %.3f}\n",
               d->name, d->packets, d->segments, d->payload_bytes, d->lost, d->dropped, queue_ns / 1e6,
               d->queue_max_ns / 1e6);
        d->queue_max_ns = 0;
    }
}

/* Does what one line of stdin says, and answers it. */
static void obey(const char *line, struct direction *directions) {
    char name[16] = "";
    double value = -1;
    int num_fields = sscanf(line, "%15s %lf", name, &value);
    int known = 1;
    if (num_fields == 1 && !strcmp(name, "stats")) {
        print_stats(directions);
        return;
    }
    if (num_fields != 2 || !(value >= 0))
        known = 0;
    else if (!strcmp(name, "rate"))
        settings.rate_bps = value * 1e6;
    else if (!strcmp(name, "delay"))
        settings.delay_ns = value * 1e6;
    else if (!strcmp(name, "queue"))
        settings.queue_ns = value * 1e6;
    else if (!strcmp(name, "loss") && value <= 100) {
        settings.loss = value / 100;
        for (int i = 0; i < 2; i++) directions[i].until_loss = draw_gap();
    } else
        known = 0;
    printf(known ? "ok\n" : "unknown\n");
}

/* Reads what stdin has; whole lines are obeyed. Returns 0 at its end. */
static int read_commands(struct direction *directions) {
    static char text[4096];
    static size_t length;
    ssize_t got = read(STDIN_FILENO, text + length, sizeof text - 1 - length);
    if (got <= 0) return got < 0 && errno == EINTR;
    length += (size_t)got;
    text[length] = 0;
    char *line = text, *end;
    while ((end = strchr(line, '\n'))) {
        *end = 0;
        obey(line, directions);
        line = end + 1;
    }
    length -= (size_t)(line - text);
    if (length == sizeof text - 1) length = 0; /* no line is that long: drop it */
    memmove(text, line, length);
    fflush(stdout);
    return 1;
}

static void on_signal(int number) {
    (void)number;
    stopping = 1;
}

/* Carries packets until told to stop. */
static void carry(struct direction *directions) {
    struct pollfd polls[3] = {{directions[0].in, POLLIN, 0}, {directions[1].in, POLLIN, 0}, {STDIN_FILENO, POLLIN, 0}};
    while (!stopping) {
        int64_t wait_ns = 200000000;
        for (int i = 0; i < 2; i++) ingest(&directions[i]);
        for (int i = 0; i < 2; i++) {
            int64_t due_ns = drain(&directions[i]);
            if (due_ns >= 0 && due_ns < wait_ns) wait_ns = due_ns;
        }
        struct timespec wait = {wait_ns / 1000000000, wait_ns % 1000000000};
        if (ppoll(polls, 3, &wait, NULL) > 0 && polls[2].revents && !read_commands(directions)) return;
    }
}

int main(int num_arguments, char **arguments) {
    if (num_arguments != 4) {
        fprintf(stderr, "usage: wanem NAMESPACE_A NAMESPACE_B SEED\n");
        return 2;
    }
    random_state = strtoull(arguments[3], NULL, 10) * 2 + 1; /* never zero */
    for (int i = 0; i < 10; i++) random_unit();
    signal(SIGTERM, on_signal);
    signal(SIGINT, SIG_IGN); /* Ctrl-C is for whoever started this; the end of stdin follows */
    prctl(PR_SET_TIMERSLACK, 1000UL, 0, 0, 0);
    int a = open_tun(arguments[1]), b = open_tun(arguments[2]);
    struct direction directions[2] = {{.name = "a_to_b", .in = a, .out = b}, {.name = "b_to_a", .in = b, .out = a}};
    for (int i = 0; i < 2; i++) {
        void *ring = mmap(NULL, RING_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (ring == MAP_FAILED) fail("mmap");
        directions[i].ring = ring;
        directions[i].until_loss = draw_gap();
    }
    printf("up\n");
    fflush(stdout);
    carry(directions);
    print_stats(directions);
    return 0;
}
