/* integers.h's sums and roundings by themselves: tests/test_rounding.py builds this with several sets of instructions. */

#include "integers.h"

int32_t lanes(void) { return LANES; }

#define SUM(storage) case storage: sums = dot(sums, q_of(words, group, at, storage), four, storage); break;
/* out (PANEL) = q . r of one record's numbers and 32 inputs. */
void dots(const uint8_t *words, const int8_t *inputs, int32_t storage, int32_t *out) {
    for (int at = 0; at < PANEL; at += LANES) {
        Ints sums = {0};
        for (int group = 0; group < BLOCK / 4; group++) {
            int32_t four;
            memcpy(&four, inputs + 4 * group, sizeof(four));
            switch (storage) { OF_ROUNDED(SUM) }
        }
        *(Ints *)(out + at) = sums;
    }
}

void round_inputs(const float *x, int32_t inputs, int8_t *numbers, float *scales, float *sums) {
    Rounded to = {numbers, scales, sums, blocks_of(inputs)};
    round_row(x, inputs, &to, 0);
}
