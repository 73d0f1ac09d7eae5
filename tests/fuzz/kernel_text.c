/* The text of a kernel list: what is read is printed as a text that reads back to the same. Of a file of tests/kernels it is the part behind
 * the graph. */
#include "tests/fuzz/fuzz.h"

#include "ir/kernels.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count)
{
    static const char title[] = "=== kernels ===\n";
    const char *text_at = (const char *)bytes, *list = count > 0 ? memmem(bytes, count, title, sizeof title - 1) : NULL;
    if (list) {
        list += sizeof title - 1;
        count -= (size_t)(list - text_at);
        text_at = list;
    }
    kl_program *program = kl_parse("fuzz", text_at, count);
    if (!program) {
        FUZZ_CHECK(*base_error() && !strchr(base_error(), '\n'), "refused in no line, or in two: %s", base_error());
        base_error_clear();
        return 0;
    }
    base_text text = { 0 }, text_again = { 0 };
    kl_print(&text, program);
    kl_program *again = kl_parse("printed", text.at, text.len);
    FUZZ_CHECK(again, "%s\n%s", base_error(), text.at);
    kl_print(&text_again, again);
    FUZZ_CHECK(strcmp(text.at, text_again.at) == 0, "printed as\n%s\nand read back as\n%s", text.at, text_again.at);
    base_text_free(&text);
    base_text_free(&text_again);
    kl_program_free(again);
    kl_program_free(program);
    return 0;
}
