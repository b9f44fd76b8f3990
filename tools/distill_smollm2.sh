#!/bin/sh
# Distils a draft for SmolLM2-135M-Instruct within three hours of two cores, and compares it with the other drafters on
# prompts that it has not seen. Cut off, it goes on where it was. Run it from the repository: tools/distill_smollm2.sh
set -eu
out=${1:-build/smollm2-draft}
minutes=${2:-165}
python tools/english_data.py "$out/data"
sybil distill smollm2 --data "$out/data/training.jsonl" --out "$out/draft" --layers 4 --width 256 --budget "$minutes" --no-compare
for dtype in auto float32; do
    sybil compare --target smollm2 --draft "$out/draft" --prompts "$out/data/measuring.jsonl" --count 38 --dtype "$dtype" \
        --drafters "draft,self,lookup,hybrid:lookup,self,hybrid:lookup,$out/draft,cascade:lookup,$out/draft" --out "$out/compare-$dtype"
done
