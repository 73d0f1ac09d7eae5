/* The text of a graph: what is read is printed as a text that reads back to the same. */
#include "tests/fuzz/fuzz.h"

#include "ir/ir.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count)
{
    ir_graph *graph = ir_parse("fuzz", (const char *)bytes, count);
    if (!graph) {
        FUZZ_CHECK(*base_error() && !strchr(base_error(), '\n'), "refused in no line, or in two: %s", base_error());
        base_error_clear();
        return 0;
    }
    char *text = ir_to_text(graph);
    ir_graph *again = ir_parse("printed", text, strlen(text));
    FUZZ_CHECK(again, "%s\n%s", base_error(), text);
    char *text_again = ir_to_text(again);
    FUZZ_CHECK(strcmp(text, text_again) == 0, "printed as\n%s\nand read back as\n%s", text, text_again);
    FUZZ_CHECK(ir_graph_hash(graph) == ir_graph_hash(again), "equal texts have different hashes");
    base_free(text);
    base_free(text_again);
    ir_graph_free(again);
    ir_graph_free(graph);
    return 0;
}
