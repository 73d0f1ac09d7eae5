/* UTF-8 by RFC 3629: no overlong forms, no surrogates, nothing above U+10FFFF. */
#include "data/data.h"

#include <string.h>

size_t data_utf8_char(data_text text, uint32_t *code_point)
{
    if (text.len == 0)
        return 0;
    const uint8_t *at = (const uint8_t *)text.at;
    uint32_t lead = at[0], least;
    size_t size;

    if (lead < 0x80) {
        *code_point = lead;
        return 1;
    }
    if (lead >= 0xC2 && lead < 0xE0)
        size = 2, least = 0x80, lead &= 0x1F;
    else if (lead >= 0xE0 && lead < 0xF0)
        size = 3, least = 0x800, lead &= 0x0F;
    else if (lead >= 0xF0 && lead < 0xF5)
        size = 4, least = 0x10000, lead &= 0x07;
    else
        return 0;
    if (text.len < size)
        return 0;
    for (size_t i = 1; i < size; i++) {
        if ((at[i] & 0xC0) != 0x80)
            return 0;
        lead = lead << 6 | (at[i] & 0x3F);
    }
    if (lead < least || lead > 0x10FFFF || (lead >= 0xD800 && lead < 0xE000))
        return 0;
    *code_point = lead;
    return size;
}

size_t data_utf8_put(uint32_t c, char out[4])
{
    size_t size = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    static const uint8_t lead[5] = { 0, 0x00, 0xC0, 0xE0, 0xF0 };

    for (size_t i = size; i-- > 1; c >>= 6)
        out[i] = (char)(0x80 | (c & 0x3F));
    out[0] = (char)(lead[size] | c);
    return size;
}

size_t data_utf8_valid(data_text text)
{
    size_t pos = 0;

    for (;;) {
        uint64_t eight;
        while (pos + 8 <= text.len && (memcpy(&eight, text.at + pos, 8), !(eight & 0x8080808080808080u)))
            pos += 8;                                   /* ASCII, which most text is, eight bytes at a time */
        uint32_t c;
        size_t size = data_utf8_char((data_text){ text.at + pos, text.len - pos }, &c);
        if (size == 0)
            return pos;
        pos += size;
    }
}
