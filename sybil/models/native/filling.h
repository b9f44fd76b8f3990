/* Packs weights into panels and unpacks them. records.py describes a block's fields; this file moves them. */

#pragma once

#include <stdint.h>
#include <string.h>

#include "formats.h"

typedef struct { /* a field: `count` numbers of `size` bytes; from: its place in a block; to: in a record */
    int32_t from, to, size, count, packed;
} Field;

/* One of Q4_K's 8 scales and 8 minima, of six bits each, by its number. */
static uint8_t six_bits(const uint8_t *from, int32_t number) {
    const uint8_t *low = from + number / 8 * 4, *high = from + 8;
    const int32_t at = number % 8;
    if (at < 4) return low[at] & 63;
    return (number < 8 ? high[at - 4] & 15 : high[at - 4] >> 4) | low[at - 4] >> 6 << 4;
}

/* Packs numbers (outputs, blocks * block_bytes) into the records of panels. The records must be zeros before. */
void sybil_fill(uint8_t *records, const uint8_t *numbers, int64_t outputs, int64_t blocks, int32_t block_bytes,
                int32_t record_bytes, int32_t panel, const Field *fields, int32_t field_count) {
    const int64_t row = blocks * block_bytes;
    for (int64_t first = 0; first < outputs; first += panel, numbers += panel * row) {
        const int32_t some = smaller(panel, outputs - first);
        for (int64_t block = 0; block < blocks; block++, records += record_bytes)
            for (const Field *field = fields; field < fields + field_count; field++)
                for (int32_t number = 0; number < field->count; number++) {
                    const int32_t size = field->size;
                    const uint8_t *from = numbers + block * block_bytes + field->from + number * size * !field->packed;
                    uint8_t *to = records + field->to + number * panel * size;
                    for (int32_t each = 0; each < some; each++, from += row, to += size) {
                        if (field->packed) *to = six_bits(from, number);
                        else if (size == 4) memcpy(to, from, 4);
                        else if (size == 2) memcpy(to, from, 2);
                        else *to = *from;
                    }
                }
    }
}

/* Unpacks the panels of a storage into rows: out (outputs, inputs) in float32. The inputs are whole blocks. */
void sybil_unpack(const uint8_t *records, int32_t storage, int64_t outputs, int64_t inputs, float *out) {
    const Record record = record_of(storage);
    const int64_t panel_bytes = inputs / record.inputs * record.bytes;
    _Alignas(64) float room[RUN * PANEL];
    for (int64_t first = 0; first < outputs; first += PANEL, records += panel_bytes, out += PANEL * inputs)
        for (int64_t input = 0; input < inputs; input += RUN) {
            const int32_t some = smaller(RUN, inputs - input);
            const float *weights = in_float32(records, input, some, storage, room);
            for (int32_t each = 0; each < smaller(PANEL, outputs - first); each++)
                for (int32_t at = 0; at < some; at++) out[each * inputs + input + at] = weights[at * PANEL + each];
        }
}
