/* Says what a power cut would leave of a file. In the process that loads this (LD_PRELOAD), bringing the
 * file VOLATILE_FILE, or one beside it whose name begins so, to the disk takes SYNC_MILLISECONDS, and then
 * NAME.on_disk has the contents that it had when the call began. All that was written later may be lost,
 * and is, once NAME.on_disk takes the file's place. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int copy(const char *from, const char *to) {
    static char buffer[1 << 16];
    int source = open(from, O_RDONLY | O_CLOEXEC);
    int target = open(to, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    int failed = source < 0 || target < 0;
    ssize_t count = 0;
    while (!failed && (count = read(source, buffer, sizeof buffer)) > 0) {
        failed = write(target, buffer, (size_t)count) != count;
    }
    if (source >= 0) close(source);
    if (target >= 0) close(target);
    return failed || count < 0;
}

static void wait_for_the_disk(void) {
    const char *milliseconds = getenv("SYNC_MILLISECONDS");
    if (milliseconds) usleep((useconds_t)atoi(milliseconds) * 1000);
}

/* Whether the file is one of those; its name then. */
static int is_volatile(int file, char *path) {
    const char *name = getenv("VOLATILE_FILE");
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    if (!name || length < 0) return 0;
    path[length] = '\0';
    return !strncmp(path, name, strlen(name));
}

static int synced(int file, const char *call) {
    static pthread_mutex_t disk = PTHREAD_MUTEX_INITIALIZER;
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, call);
    char path[PATH_MAX], writing[PATH_MAX + 16], on_disk[PATH_MAX + 16];
    if (!is_volatile(file, path)) return real(file);
    snprintf(writing, sizeof writing, "%s.writing", path);
    snprintf(on_disk, sizeof on_disk, "%s.on_disk", path);
    pthread_mutex_lock(&disk);
    if (copy(path, writing)) abort();
    wait_for_the_disk();
    int failed = real(file);
    if (!failed && rename(writing, on_disk)) abort();
    pthread_mutex_unlock(&disk);
    return failed;
}

int fsync(int file) { return synced(file, "fsync"); }

int fdatasync(int file) { return synced(file, "fdatasync"); }
