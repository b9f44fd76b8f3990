"""Messages become the text and the token ids that transformers makes of them, and no template runs for ever."""

from __future__ import annotations

import time
from typing import Any

import pytest
from tiny import gpt2, letters
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from tokenizers import decoders as steps
from transformers import PreTrainedTokenizerFast

from sybil import load
from sybil.chat import ChatTemplate
from sybil.errors import EmptyPrompt, InvalidSetting, NotAModel, SybilError
from sybil.inputs import prompts_of

CHATML = """{%- for message in messages %}
{%- if loop.first and message.role != 'system' %}{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif -%}
{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
LLAMA_3 = """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{%- if not date_string is defined %}{% set date_string = strftime_now("%Y") %}{% endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\nYear: " + date_string + "\n\n" + system_message + "<|eot_id|>" }}
{%- for message in messages %}
    {%- if 'tool_calls' in message %}{{ message.tool_calls | tojson(indent=2) }}{% continue %}{% endif %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}
"""
GEMMA = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}
{{ raise_exception('System role not supported') }}{% endif %}
{% for message in messages %}
    {% set role = 'model' if message['role'] == 'assistant' else message['role'] %}
    {{ '<start_of_turn>' ~ role ~ '\n' ~ message['content'] | trim ~ '<end_of_turn>\n' -}}
{% endfor %}
{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}
"""
MISTRAL = """{%- set ns = namespace(turn=0) -%}
{{ bos_token }}{% for message in messages %}
{%- if (message['role'] == 'user') != (ns.turn % 2 == 0) -%}
{{ raise_exception('roles must alternate user/assistant/user') }}{%- endif -%}
{%- set ns.turn = ns.turn + 1 -%}
{%- if message['role'] == 'user' -%}{{ '[INST] ' + message['content'] + ' [/INST]' }}
{%- else -%}{% generation %}{{ ' ' + message['content'] + eos_token }}{% endgeneration %}{%- endif -%}
{%- endfor %}"""
MACROS = """{% macro said(content) %}{% if content is string %}{{ content }}{% else %}
{%- for part in content if part.type == 'text' %}{{ part.text | default('?') }}{{ loop.length }}{% endfor %}
{% endif %}{% endmacro %}
{% set seen = namespace(names=[]) %}
{% for message in messages | selectattr('content') %}
{% set seen.names = seen.names + [message.role[:3]] %}
{{ "%s: %d " | format(message.role, loop.index) }}{{ said(message['content']) }}{{ message.reasoning_content }}
{{ "{:>5}".format(message.role.split('s')[-1]) }}{% if loop.index == 3 %}{% break %}{% endif %}
{% endfor %}{{ seen.names | join(',') }}{{ dict(a=1) | tojson }}
{{ {'é': none, 'b': [1.5, true]} | tojson(sort_keys=true) }}"""
TEMPLATES = {"chatml": CHATML, "llama-3": LLAMA_3, "gemma": GEMMA, "mistral": MISTRAL, "macros": MACROS}
USER, ANSWER = {"role": "user", "content": " Hé, 漢字 <|im_end|>\n\n"}, {"role": "assistant", "content": "well \n"}
SYSTEM = {"role": "system", "content": " Be <b>brief</b>. "}
CHATS: dict[str, list[dict[str, Any]]] = {
    "one": [USER],
    "system": [SYSTEM, USER],
    "turns": [USER, ANSWER, {"role": "user", "content": "and?"}],
    "many": [SYSTEM, USER, ANSWER, USER, ANSWER, USER],
    "odd": [USER, USER],
    "continued": [USER, ANSWER],
    "parts": [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": None}
    ],
    "parts continued": [USER, {"role": "assistant", "content": [{"type": "text", "text": "so "}]}],
    "extra": [USER, {"role": "assistant", "content": "x", "tool_calls": [{"a": 1}], "thinking": "hm"}, USER],
}
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "<start_of_turn>", "[INST]"]


def tokenizer() -> Tokenizer:
    """Byte by byte, with special tokens, and a first token that it puts before every text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = steps.ByteLevel()
    made.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    first = made.token_to_id("<s>")
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", first)])
    return made


@pytest.fixture(scope="module")
def theirs() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer(), bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("chat", CHATS)
def test_text_and_ids_are_transformers(theirs: PreTrainedTokenizerFast, template: str, chat: str) -> None:
    messages, text = CHATS[chat], TEMPLATES[template]
    goes_on = messages[-1]["role"] == "assistant"
    asked = {"chat_template": text, "add_generation_prompt": not goes_on, "continue_final_message": goes_on}
    ours = ChatTemplate(text, theirs.special_tokens_map)
    try:
        wanted = theirs.apply_chat_template(messages, tokenize=False, **asked)
    except Exception:
        with pytest.raises(SybilError):
            ours.render(messages)
        return
    assert ours.render(messages) == wanted
    ids = theirs.apply_chat_template(messages, tokenize=True, return_dict=False, **asked)
    model = load(gpt2(vocab=300, context=1024)).target
    assert prompts_of(messages, tokenizer(), model, ours) == [ids]
    assert prompts_of([messages, "a", messages], tokenizer(), model, ours) == [ids, tokenizer().encode("a").ids, ids]


def test_each_template_is_rendered_by_transformers_for_some_chats(theirs: PreTrainedTokenizerFast) -> None:
    """So that the test above compares."""
    for text in TEMPLATES.values():
        assert theirs.apply_chat_template(CHATS["turns"], chat_template=text, tokenize=False)
        assert ChatTemplate(text, theirs.special_tokens_map).render(CHATS["turns"])


def test_a_template_that_refuses_says_why() -> None:
    with pytest.raises(InvalidSetting, match="refuses these messages: System role not supported"):
        ChatTemplate(GEMMA, {}).render([SYSTEM, USER])


@pytest.mark.parametrize(
    ("messages", "line"),
    [
        ([], "no messages"),
        ([{"role": "user"}], r"message 0 is \{'role': 'user'\}"),
        ([USER, {"content": "a"}], "message 1"),
        ([{"role": "user", "content": 5}], "message 0"),
        ([{"role": None, "content": "a"}], "message 0"),
        ([USER, "a"], "message 1 is 'a'"),
        ([{1: 2}], "message 0"),
        ([{"role": "user", "content": [object()]}], "read text alone"),
        ([USER, {"role": "assistant", "content": [{"type": "image"}]}], "no text to continue"),
        ([USER, {"role": "assistant", "content": "x"}], "leaves out the last message"),
    ],
)
def test_bad_messages_are_one_line(messages: list[Any], line: str) -> None:
    with pytest.raises(InvalidSetting, match=line) as caught:
        ChatTemplate("{{ messages[0].content }}").render(messages)
    assert "\n" not in str(caught.value)


HOSTILE = [
    "{% for i in range(10**9) %}{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) if false %}{% endfor %}{% endfor %}",
    "{% for i in [1] recursive %}{{ loop(range(99999)) }}{% endfor %}",
    "{% macro f(n) %}{{ f(n + 1) }}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x %}{{ n.x }}{{ n.x }}{% endset %}{% endfor %}",
    "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}",
    "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x ~ 'a' }}",
    "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x | tojson }}",
    "{% set n = namespace(x=7) %}{% for i in range(60) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "{{ 'a' * 10**10 }}",
    "{{ [1] * 10**10 }}",
    "{{ 10 ** (10 ** 10) }}",
    "{{ 7 | round(10**9) }}",
    "{{ 7 | round(5 * 10**7, 'ceil') }}",
    "{{ ([[1]] * 99999) | sum(start=[]) }}",
    *(
        "{% set n = namespace(x=(1,), y=(1,)) %}"
        "{% for i in range(60) %}{% set n.x = (n.x, n.x) %}{% set n.y = (n.y, n.y) %}{% endfor %}" + what
        for what in (
            "{{ n.x == n.y }}",
            "{{ n.x is eq n.y }}",
            "{{ [n.x] | select('eq', n.y) | list }}",
            "{{ [namespace(z=n.x), namespace(z=n.y)] | map(attribute='z') | sort }}",
            "{% for each in (n.x, n.y) %}{{ loop.changed(each) }}{% endfor %}",
            "{{ n.x in {} }}",
            "{{ {}[n.x] }}",
            "{{ {n.x: 1} }}",
        )
    ),
    "{{ 'a' | center(10000000000) }}",
    "{{ 'a'.ljust(10**10) }}",
    "{{ ('a' * 99999).replace('a', 'a' * 99999) }}",
    "{{ ('a' * 99999) | replace('a', 'a' * 99999) }}",
    "{{ ['a' * 99999] * 99999 | join }}",
    "{{ ('a' * 99999).join('a' * 99999) }}",
    "{{ '%9999999999d' % 1 }}",
    "{{ '%*d' % (9999999999, 1) }}",
    "{{ '%9999999999d' | format(1) }}",
    "{{ '{:9999999999}'.format(1) }}",
    "{{ '{:{}}'.format(1, 9999999999) }}",
    "{{ '{x:9999999999}'.format_map({'x': 1}) }}",
    "{{ [1, 2] | tojson(indent=10**9) }}",
    "{{ 'a\\ta'.expandtabs(10**10) }}",
    "{{ range(99999) | batch(1) | map('join') | list * 9999 }}",
    "{{ lipsum(10**6) }}",
    "{{ ''.__class__.__mro__ }}{{ messages.append(1) }}",
    "{{ messages[0].__init__.__globals__ }}{{ cycler.__init__.__globals__ }}",
    "{{ dict.__class__.__base__.__subclasses__() }}",
    "{% set n = namespace(_x=1) %}",
    "{% include 'x' %}",
    "{% import 'os' as os %}",
    "{{ messages[0]['x']['y'] }}",
    "{{ 1 / 0 }}",
    "{% if %}",
    "{{",
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "{{ x | nonesuch }}",
    "{{ strftime_now(1) }}",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_template_is_one_line(text: str) -> None:
    before = time.process_time()
    with pytest.raises(NotAModel, match="chat template can't be rendered") as caught:
        ChatTemplate(text).render([USER])
    assert "\n" not in str(caught.value)
    assert time.process_time() - before < 60  # nothing but "it ends": most take milliseconds


def test_a_long_conversation_is_within_the_budget() -> None:
    turns = [{"role": role, "content": "words " * 400} for role in ("user", "assistant") * 500]
    for text in (CHATML, LLAMA_3, GEMMA, MACROS):
        assert ChatTemplate(text, {"bos_token": "<s>"}).render([*turns, USER])


def test_a_decoder_takes_messages() -> None:
    letter = PreTrainedTokenizerFast(tokenizer_object=letters(), chat_template="{{ messages[-1].content }}b")
    decoder = load(gpt2(), tokenizer=letter)
    out = decoder.generate([{"role": "user", "content": "ca"}], max_new_tokens=5)
    assert out.tokens[0].tolist() == decoder.generate("cab", max_new_tokens=5).tokens[0].tolist()
    both = decoder.generate([[{"role": "user", "content": "ca"}], "cab"], max_new_tokens=5)
    assert both.text == [out.text[0], out.text[0]]
    assert decoder.without_draft().chat_template is decoder.without_defaults().chat_template is decoder.chat_template
    with pytest.raises(EmptyPrompt):
        decoder.generate([[]])
    with pytest.raises(InvalidSetting, match="no chat template"):
        load(gpt2(), tokenizer=letters()).generate([{"role": "user", "content": "ca"}])
    with pytest.raises(InvalidSetting, match="UTF-8"):
        decoder.generate([{"role": "user", "content": "\ud800"}])
