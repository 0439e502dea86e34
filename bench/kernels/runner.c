// SPDX-License-Identifier: Apache-2.0
/*
 * The kernel matrix's guest program: loads BPF objects as links of one tail-call chain,
 * test-runs the head and prints what the kernel answered, one line per job.
 *
 *   runner JOBFILE        as root, on any host: run the jobs, exit 0 if all gave a RESULT
 *   (as process 1)        in the initramfs: mount what is needed, settle, run /t/jobs, reboot
 *
 * Job file: lines of words, '#' starts a comment; paths are relative to the job file.
 *   job NAME                   begins a job
 *   kind chain|load            load: say only whether the programs load (default: chain)
 *   slots MAP                  name of the chain's PROG_ARRAY (default: bpfchain_slots)
 *   as SECTION                 program type and attach type of this section name for every program
 *                              (for objects whose own section name libbpf does not know)
 *   type NUMBER NUMBER         the same by enum bpf_prog_type and enum bpf_attach_type (for types
 *                              that the libbpf in here does not know)
 *   link OBJECT [PROG[=SLOT]]...   the programs to load; none named: all of them. SLOT 0 is the head
 *   packet FILE                the packet of the test run
 *   repeat N                   runs averaged by the kernel in one test run (default 1000)
 *   rounds N                   test runs of which the smallest duration counts (default 40)
 *   end                        runs the job
 *
 * Ring buffers are emptied after each round, so that a full one does not shorten the path; at most
 * their size divided by the repeat count may be written per run (`records` shows what arrived).
 *
 * Printed: RESULT job=NAME retval=R ns=MIN loaded=N hits=ROUNDS_WITH_MIN max=MAX bytes=LEN:HASH
 *                 records=RING_BUFFER_RECORDS_OF_THE_LAST_ROUND
 *          RESULT job=NAME loaded=N                                        (kind load)
 *          ERROR job=NAME what failed: why | last lines of libbpf and of the verifier
 */
#define _GNU_SOURCE
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#define MAX_LINKS 64
#define MAX_PROGS 64
#define MAX_WORDS (MAX_PROGS + 8)
#define LOG_SIZE (4u << 20)
#define LOG_LINES 4
#define SETTLE_SECONDS 20
#define PACKET_ROOM 16384

struct entry {
	char *program;
	long slot; /* -1: loaded, in no slot */
};

struct chain_link {
	char *object;
	struct entry entries[MAX_PROGS];
	int count;
};

struct job {
	char *name, *slots, *as, *packet;
	int load_only, repeat, rounds, count;
	int typed, type, attach; /* as `type` said */
	struct chain_link links[MAX_LINKS];
};

static char *verifier_log;	/* of the program that was loaded last, so of the one that failed */
static char library_log[8192]; /* libbpf's warnings, the oldest dropped first */

static void say(const char *format, ...)
{
	/* One write per line, so that kernel messages on the console cannot split it. */
	static char line[16384];
	va_list args;
	int n;

	va_start(args, format);
	n = vsnprintf(line, sizeof(line) - 2, format, args);
	va_end(args);
	if (n > (int)sizeof(line) - 3)
		n = sizeof(line) - 3;
	for (int i = 0; i < n; i++)
		if (line[i] == '\n' || line[i] == '\r')
			line[i] = ' ';
	line[n++] = '\n';
	if (write(STDOUT_FILENO, line, n) != n)
		_exit(9);
}

static int keep_warning(enum libbpf_print_level level, const char *format, va_list args)
{
	char text[4096];
	size_t have = strlen(library_log), more;

	if (level != LIBBPF_WARN || strstr(format, "PROG LOAD LOG"))
		return 0;
	vsnprintf(text, sizeof(text), format, args);
	more = strlen(text);
	if (have + more >= sizeof(library_log)) {
		size_t drop = have + more + 1 - sizeof(library_log);

		memmove(library_log, library_log + drop, have - drop + 1);
	}
	strcat(library_log, text);
	return 0;
}

/* Lines that end every log, whatever went wrong. */
static int is_noise(const char *line)
{
	const char *end = line + strcspn(line, "\n"), *found;
	static const char *const starts[] = { "processed ", "verification time", "stack depth",
					      "libbpf: failed to load object" };

	for (size_t i = 0; i < sizeof(starts) / sizeof(*starts); i++)
		if (!strncmp(line, starts[i], strlen(starts[i])))
			return 1;
	found = strstr(line, "': failed to load: -");
	return found && found < end;
}

/* The last `lines` lines of `log` that say something, joined by " | ", appended to `out`. */
static void append_tail(char *out, size_t room, const char *log, int lines)
{
	const char *kept[LOG_LINES * 2];
	int lengths[LOG_LINES * 2], n = 0;
	const char *end = log + strlen(log);

	while (end > log && n < lines) {
		const char *start = end;

		while (start > log && start[-1] != '\n')
			start--;
		if (end > start && !is_noise(start)) {
			kept[n] = start;
			lengths[n++] = end - start;
		}
		end = start > log ? start - 1 : log;
	}
	while (n--) {
		size_t have = strlen(out);

		snprintf(out + have, room - have, " | %.*s", lengths[n], kept[n]);
	}
}

static int fail(const struct job *job, const char *format, ...)
{
	char text[8192] = "";
	va_list args;

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	append_tail(text, sizeof(text), library_log, LOG_LINES);
	append_tail(text, sizeof(text), verifier_log, LOG_LINES);
	say("ERROR job=%s %s", job->name, text);
	return 1;
}

static int choose_programs(const struct job *job, const struct chain_link *link,
			   struct bpf_object *object)
{
	enum bpf_attach_type attach = job->attach;
	enum bpf_prog_type type = job->type;
	struct bpf_program *program;
	int seen = 0;

	if (job->as && libbpf_prog_type_by_name(job->as, &type, &attach))
		return fail(job, "as %s: libbpf does not know this section name", job->as);
	bpf_object__for_each_program(program, object) {
		int wanted = link->count == 0;

		for (int i = 0; i < link->count; i++)
			if (!strcmp(link->entries[i].program, bpf_program__name(program)))
				wanted = 1;
		bpf_program__set_autoload(program, wanted);
		if (!wanted)
			continue;
		if (job->as || job->typed) {
			bpf_program__set_type(program, type);
			bpf_program__set_expected_attach_type(program, attach);
		}
		bpf_program__set_log_buf(program, verifier_log, LOG_SIZE);
		seen++;
	}
	if (!seen)
		return fail(job, "%s: no program to load", link->object);
	return 0;
}

/* Objects share one PROG_ARRAY: the first that has it creates it, the others reuse it. */
static int share_slots(const struct job *job, const struct chain_link *link,
		       struct bpf_object *object, struct bpf_map *shared)
{
	struct bpf_map *own = bpf_object__find_map_by_name(object, job->slots);
	struct bpf_map *map;
	int error;

	bpf_object__for_each_map(map, object)
		bpf_map__set_pin_path(map, NULL); /* nothing of a run stays on the host */
	if (!own || !shared)
		return 0;
	if (bpf_map__type(own) != bpf_map__type(shared) ||
	    bpf_map__max_entries(own) != bpf_map__max_entries(shared))
		return fail(job, "%s: map %s is defined otherwise than in the link before",
			    link->object, job->slots);
	error = bpf_map__reuse_fd(own, bpf_map__fd(shared));
	if (error)
		return fail(job, "%s: reuse of map %s: %s", link->object, job->slots,
			    strerror(-error));
	return 0;
}

static int fill_slots(const struct job *job, struct bpf_object **objects, struct bpf_map *slots)
{
	long below = 1L << 32;

	for (;;) { /* from the highest slot to the head */
		long best = -1;
		int fd = -1;

		for (int i = 0; i < job->count; i++)
			for (int k = 0; k < job->links[i].count; k++) {
				const struct entry *e = &job->links[i].entries[k];

				if (e->slot <= best || e->slot >= below)
					continue;
				best = e->slot;
				fd = bpf_program__fd(bpf_object__find_program_by_name(
					objects[i], e->program));
			}
		if (best < 0)
			return 0;
		if (bpf_map_update_elem(bpf_map__fd(slots), &(__u32){ best }, &fd, BPF_ANY))
			return fail(job, "slot %ld: %s", best, strerror(errno));
		below = best;
	}
}

static int read_packet(const char *path, unsigned char *data, size_t room)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	int n = fd < 0 ? -1 : read(fd, data, room);

	if (fd >= 0)
		close(fd);
	return n;
}

/*
 * A ring buffer of a job. It is emptied but for its last record: with none left, the next write
 * would wake a reader that is not there, and the test run would count that too.
 */
struct ring {
	unsigned long *consumer, *producer;
	unsigned char *data;
	unsigned long mask;
};

static int open_rings(const struct job *job, struct bpf_object **objects, struct ring *rings,
		      int *count)
{
	long page = sysconf(_SC_PAGESIZE);
	struct bpf_map *map;

	*count = 0;
	for (int i = 0; i < job->count; i++)
		bpf_object__for_each_map(map, objects[i]) {
			struct ring *ring = &rings[*count];
			size_t size = bpf_map__max_entries(map);
			int fd = bpf_map__fd(map);

			if (bpf_map__type(map) != BPF_MAP_TYPE_RINGBUF)
				continue;
			if (++*count > MAX_LINKS)
				return fail(job, "more than %d ring buffers", MAX_LINKS);
			ring->mask = size - 1;
			ring->consumer = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
			/* The kernel maps the data twice in a row, so that no record is split. */
			ring->producer = mmap(NULL, page + 2 * size, PROT_READ, MAP_SHARED, fd, page);
			if (ring->consumer == MAP_FAILED || ring->producer == MAP_FAILED)
				return fail(job, "ring buffer %s: %s", bpf_map__name(map),
					    strerror(errno));
			ring->data = (unsigned char *)ring->producer + page;
		}
	return 0;
}

/* Give back all records but the last; the number of records that were there. */
static int drain(struct ring *ring)
{
	unsigned long at = *ring->consumer, last = at;
	int records = 0;

	for (; at < __atomic_load_n(ring->producer, __ATOMIC_ACQUIRE); records++) {
		__u32 length = __atomic_load_n((__u32 *)(ring->data + (at & ring->mask)),
					       __ATOMIC_ACQUIRE);

		last = at;
		length &= ~(BPF_RINGBUF_BUSY_BIT | BPF_RINGBUF_DISCARD_BIT);
		at += (length + BPF_RINGBUF_HDR_SZ + 7) & ~7ul;
	}
	__atomic_store_n(ring->consumer, last, __ATOMIC_RELEASE);
	return records;
}

static int measure(const struct job *job, struct bpf_object **objects, int head, int loaded)
{
	static unsigned char in[PACKET_ROOM], out[PACKET_ROOM];
	__u32 least = ~0u, most = 0, retval = 0, hash = 2166136261u, length = 0;
	int hits = 0, size = job->packet ? read_packet(job->packet, in, sizeof(in)) : 64;
	struct ring rings[MAX_LINKS + 1];
	int records = 0, ring_count, kept = 0;

	if (size <= 0)
		return fail(job, "packet %s: %s", job->packet, size ? strerror(errno) : "empty");
	if (open_rings(job, objects, rings, &ring_count))
		return 1;
	for (int round = 0; round < job->rounds; round++) {
		LIBBPF_OPTS(bpf_test_run_opts, run, .data_in = in, .data_size_in = size,
			    .data_out = out, .data_size_out = sizeof(out), .repeat = job->repeat);

		if (bpf_prog_test_run_opts(head, &run))
			return fail(job, "test run: %s", strerror(errno));
		records = -kept; /* what the round before left is no record of this one */
		kept = 0;
		for (int i = 0; i < ring_count; i++) {
			int there = drain(&rings[i]);

			records += there;
			kept += there > 0;
		}
		if (round && run.retval != retval)
			return fail(job, "test run %d returned %u, the one before %u", round,
				    run.retval, retval);
		retval = run.retval;
		length = run.data_size_out;
		if (run.duration < least) {
			least = run.duration;
			hits = 0;
		}
		hits += run.duration == least;
		if (run.duration > most)
			most = run.duration;
	}
	for (__u32 i = 0; i < length && i < sizeof(out); i++)
		hash = (hash ^ out[i]) * 16777619u; /* FNV-1a: tells two outputs apart, no more */
	say("RESULT job=%s retval=%u ns=%u loaded=%d hits=%d max=%u bytes=%u:%08x records=%d",
	    job->name, retval, least, loaded, hits, most, length, hash, records);
	return 0;
}

static int run_job(const struct job *job)
{
	struct bpf_object *objects[MAX_LINKS];
	struct bpf_map *slots = NULL;
	int loaded = 0, head = -1, error, numbered = 0;

	for (int i = 0; i < job->count; i++) {
		const struct chain_link *link = &job->links[i];
		struct bpf_program *program;

		objects[i] = bpf_object__open_file(link->object, NULL);
		if (!objects[i])
			return fail(job, "open %s: %s", link->object, strerror(errno));
		for (int k = 0; k < link->count; k++)
			if (!bpf_object__find_program_by_name(objects[i], link->entries[k].program))
				return fail(job, "%s: no program %s", link->object,
					    link->entries[k].program);
		if (choose_programs(job, link, objects[i]) ||
		    share_slots(job, link, objects[i], slots))
			return 1;
		verifier_log[0] = 0;
		error = bpf_object__load(objects[i]);
		if (error)
			return fail(job, "load %s: %s", link->object, strerror(-error));
		verifier_log[0] = 0;
		if (!slots)
			slots = bpf_object__find_map_by_name(objects[i], job->slots);
		bpf_object__for_each_program(program, objects[i])
			loaded += bpf_program__fd(program) >= 0;
		for (int k = 0; k < link->count; k++) {
			numbered += link->entries[k].slot >= 0;
			if (link->entries[k].slot == 0)
				head = bpf_program__fd(bpf_object__find_program_by_name(
					objects[i], link->entries[k].program));
		}
	}
	if (!loaded)
		return fail(job, "no program was loaded");
	if (slots && numbered && fill_slots(job, objects, slots))
		return 1;
	if (!slots && numbered > 1)
		return fail(job, "%d slots to fill and no object has a map %s", numbered, job->slots);
	if (job->load_only) {
		say("RESULT job=%s loaded=%d", job->name, loaded);
		return 0;
	}
	if (head < 0)
		return fail(job, "no program is in slot 0");
	return measure(job, objects, head, loaded);
}

/* In a process of its own: what one job leaves (maps, memory, a crash) cannot touch the next. */
static int fork_job(const struct job *job)
{
	int status;
	pid_t child;

	fflush(NULL);
	child = fork();
	if (child == 0)
		_exit(run_job(job));
	if (child < 0 || waitpid(child, &status, 0) < 0)
		return fail(job, "fork: %s", strerror(errno));
	if (WIFSIGNALED(status))
		return fail(job, "the runner died of signal %d", WTERMSIG(status));
	return WEXITSTATUS(status);
}

static int bad_line(const char *path, int line, const char *why)
{
	say("ERROR job=? %s:%d: %s", path, line, why);
	return 1;
}

static int add_link(struct job *job, char **words, int n)
{
	struct chain_link *link = &job->links[job->count++];

	link->object = strdup(words[1]);
	link->count = 0;
	for (int i = 2; i < n; i++) {
		struct entry *e = &link->entries[link->count++];
		char *end, *equals = strchr(words[i], '=');

		e->slot = -1;
		if (equals) {
			*equals = 0;
			e->slot = strtol(equals + 1, &end, 10);
			if (!equals[1] || *end || e->slot < 0)
				return 1;
		}
		e->program = strdup(words[i]);
	}
	return 0;
}

static int run_file(const char *path)
{
	FILE *file = fopen(path, "re");
	char *line = NULL, *folder = strdup(path);
	size_t room = 0;
	int number = 0, failed = 0, open_job = 0;
	static struct job job;

	if (!file)
		return bad_line(path, 0, strerror(errno));
	if (chdir(dirname(folder)))
		return bad_line(path, 0, strerror(errno));
	while (getline(&line, &room, file) >= 0) {
		char *words[MAX_WORDS], *save = NULL;
		int n = 0;

		number++;
		line[strcspn(line, "#\n")] = 0;
		for (char *w = strtok_r(line, " \t", &save); w; w = strtok_r(NULL, " \t", &save)) {
			if (n == MAX_WORDS)
				return bad_line(path, number, "too many words");
			words[n++] = w;
		}
		if (!n)
			continue;
		if (!strcmp(words[0], "job") && n == 2 && !open_job) {
			job = (struct job){ .name = strdup(words[1]), .slots = "bpfchain_slots",
					    .repeat = 1000, .rounds = 40 };
			open_job = 1;
		} else if (!open_job) {
			return bad_line(path, number, "expected: job NAME");
		} else if (!strcmp(words[0], "kind") && n == 2 && !strcmp(words[1], "chain")) {
			job.load_only = 0;
		} else if (!strcmp(words[0], "kind") && n == 2 && !strcmp(words[1], "load")) {
			job.load_only = 1;
		} else if (!strcmp(words[0], "slots") && n == 2) {
			job.slots = strdup(words[1]);
		} else if (!strcmp(words[0], "as") && n == 2) {
			job.as = strdup(words[1]);
		} else if (!strcmp(words[0], "type") && n == 3) {
			job.typed = 1;
			job.type = atoi(words[1]);
			job.attach = atoi(words[2]);
		} else if (!strcmp(words[0], "packet") && n == 2) {
			job.packet = strdup(words[1]);
		} else if (!strcmp(words[0], "repeat") && n == 2 && atoi(words[1]) > 0) {
			job.repeat = atoi(words[1]);
		} else if (!strcmp(words[0], "rounds") && n == 2 && atoi(words[1]) > 0) {
			job.rounds = atoi(words[1]);
		} else if (!strcmp(words[0], "link") && n >= 2) {
			if (job.count == MAX_LINKS || n - 2 > MAX_PROGS || add_link(&job, words, n))
				return bad_line(path, number, "bad link, or too many");
		} else if (!strcmp(words[0], "end") && n == 1) {
			failed |= fork_job(&job);
			open_job = 0;
		} else {
			return bad_line(path, number, "not understood");
		}
	}
	if (open_job)
		return bad_line(path, number, "the last job has no end");
	return failed;
}

static void read_word(const char *path, char *out, size_t room)
{
	FILE *file = fopen(path, "re");

	snprintf(out, room, "?");
	if (file) {
		if (fgets(out, room, file))
			out[strcspn(out, "\n")] = 0;
		fclose(file);
	}
}

int main(int argc, char **argv)
{
	int init = getpid() == 1, failed;
	struct utsname host;
	char jit[16], btf[8];

	if (!init && argc != 2) {
		fprintf(stderr, "usage: runner JOBFILE\n");
		return 2;
	}
	if (init) {
		mkdir("/proc", 0755);
		mkdir("/sys", 0755);
		mount("proc", "/proc", "proc", 0, NULL);
		mount("sysfs", "/sys", "sysfs", 0, NULL);
		/* Until boot's own work is done, what it preempts counts as ours. */
		sleep(SETTLE_SECONDS);
	}
	verifier_log = calloc(1, LOG_SIZE);
	libbpf_set_print(keep_warning);
	uname(&host);
	if (init) { /* where libbpf looks for the values of CONFIG_* externs */
		char path[sizeof(host.release) + 16];

		snprintf(path, sizeof(path), "/boot/config-%s", host.release);
		if (symlink("config", path))
			say("no %s: %s", path, strerror(errno));
	}
	read_word("/proc/sys/net/core/bpf_jit_enable", jit, sizeof(jit));
	snprintf(btf, sizeof(btf), "%d", access("/sys/kernel/btf/vmlinux", R_OK) == 0);
	say("KERNEL release=%s machine=%s jit=%s btf=%s version=%s", host.release, host.machine, jit,
	    btf, host.version);
	failed = run_file(init ? "/t/jobs" : argv[1]);
	say("DONE failed=%d", failed);
	if (init) {
		sync();
		sleep(1); /* let the console drain */
		reboot(RB_AUTOBOOT);
	}
	return failed;
}
