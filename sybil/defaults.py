"""The generation defaults in a model's own files, which apply to settings that the caller leaves out. They are read as
transformers reads them (5.23)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sybil.arguments import described, token_ids
from sybil.errors import InvalidSetting, NotAModel
from sybil.settings import DEFAULTS, unsupported

NESTED = ("decoder", "generator", "text_config")  # keys under which composite models keep their language model's config


@dataclass(frozen=True, slots=True)
class Defaults:
    """end_tokens: the end tokens' ids, none where no file names any. values: by the names of Settings. left_out: what
    the files ask for and Sybil doesn't support."""

    end_tokens: frozenset[int]
    values: Mapping[str, Any]
    left_out: Mapping[str, Any]

    @classmethod
    def of(cls, generation: Mapping[str, Any] | None, config: Mapping[str, Any], model: str) -> Defaults:
        """generation: the content of generation_config.json, or a GenerationConfig as a dict. If it is None, config
        (the content of config.json) is used in its place. If generation has no end tokens, those of config are used.
        model: the model's name, for messages. Raises NotAModel for end tokens that are no token ids."""
        nested = [config[name] for name in NESTED if isinstance(config.get(name), Mapping)]
        own = {**_said(nested[0] if nested else {}), **_said(config)}
        asked = own if generation is None else _said(generation)
        ends = asked.get("eos_token_id", own.get("eos_token_id"))
        try:
            end_tokens = frozenset(token_ids("eos_token_id", ends))
        except InvalidSetting:
            raise NotAModel(
                f"{model} has eos_token_id {described(ends)}: mend generation_config.json or config.json, which may "
                "name a token id, a list of them, or none"
            ) from None
        values = {name: value for name, value in asked.items() if name in DEFAULTS}
        return cls(end_tokens, values, unsupported(asked))

    def warn(self, model: str) -> None:
        """Warn (UserWarning) about the settings in left_out, if there are any."""
        if self.left_out:
            asked = ", ".join(f"{name} {described(value)}" for name, value in self.left_out.items())
            warnings.warn(
                f"{model} asks for {asked} by default, and Sybil decodes greedily and by sampling: it does without",
                stacklevel=3,
            )


def _said(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
