/* A configuration: what is read and checked is written as JSON that reads back to the same. */
#include "tests/fuzz/fuzz.h"

#include "nanogpt/config.h"
#include "rax.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count)
{
    gpt_config config, again;
    fuzz_file file = fuzz_open(bytes, count);
    if (gpt_config_load(&config, file.path, NULL, 0)) {
        char *text = gpt_config_text(&config);
        fuzz_file printed = fuzz_open(text, strlen(text));
        FUZZ_CHECK(gpt_config_load(&again, printed.path, NULL, 0), "%s\n%s", rax_error(), text);
        char *text_again = gpt_config_text(&again);
        FUZZ_CHECK(strcmp(text, text_again) == 0, "printed as\n%s\nand read back as\n%s", text, text_again);
        rax_free(text);
        rax_free(text_again);
        gpt_config_free(&again);
        fuzz_close(&printed);
    } else {
        FUZZ_CHECK(*rax_error(), "refused without a word");
        rax_error_clear();
    }
    gpt_config_free(&config);
    fuzz_close(&file);
    return 0;
}
