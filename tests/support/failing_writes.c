/* Loaded into a service with LD_PRELOAD: while the file named by FAILING_WRITES exists, each write
   to a file of the database fails, as on a broken disk; while that of FAILING_SYNCS does, each
   sync. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static int is_broken(const char *setting, int file) {
    char link[64], path[4096];
    const char *marker = getenv(setting);
    if (marker == NULL || access(marker, F_OK) != 0) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    if (strstr(path, "/taskservice.db") == NULL) return 0;
    errno = EIO;
    return 1;
}

#define REAL(name, ...) ((ssize_t (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name))

ssize_t write(int file, const void *data, size_t size) {
    if (is_broken("FAILING_WRITES", file)) return -1;
    return REAL("write", int, const void *, size_t)(file, data, size);
}

ssize_t pwrite(int file, const void *data, size_t size, off_t place) {
    if (is_broken("FAILING_WRITES", file)) return -1;
    return REAL("pwrite", int, const void *, size_t, off_t)(file, data, size, place);
}

ssize_t pwrite64(int file, const void *data, size_t size, off64_t place) {
    if (is_broken("FAILING_WRITES", file)) return -1;
    return REAL("pwrite64", int, const void *, size_t, off64_t)(file, data, size, place);
}

int fsync(int file) {
    if (is_broken("FAILING_SYNCS", file)) return -1;
    return ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(file);
}

int fdatasync(int file) {
    if (is_broken("FAILING_SYNCS", file)) return -1;
    return ((int (*)(int))dlsym(RTLD_NEXT, "fdatasync"))(file);
}
