"""Finds out what begins and ends a thinking section, and puts messages as a model wants them, thinking or not."""

from __future__ import annotations

import re
from typing import Any

from lengthwise.errors import BadInput
from lengthwise.thinking.chain import KNOWN_TAGS, Messages, Tags

SWITCH = "enable_thinking"  # the variable by which chat templates turn thinking off


def template_of(tokenizer: Any) -> str:
    """The text of the tokenizer's chat template, of all of them where it has several; '' where it has none."""
    found = getattr(tokenizer, "chat_template", None) or ""
    return "\n".join(map(str, found.values())) if isinstance(found, dict) else str(found)


def find_tags(tokenizer: Any) -> Tags | None:
    """The first of KNOWN_TAGS whose closing tag stands in the chat template, else whose tags are tokens; else None."""
    text = template_of(tokenizer)
    for tags in KNOWN_TAGS:
        if tags.close in text:
            return tags
    words = tokenizer.get_vocab()
    return next((tags for tags in KNOWN_TAGS if tags.open in words and tags.close in words), None)


def render(messages: Messages, tokenizer: Any, tags: Tags | None, think: bool = True) -> str:
    """The prompt of `messages` up to where the model goes on: inside an open thinking section, or after an empty one.

    By the chat template, which is told whether to think where it has a variable for that; what it leaves out of the
    tags is put after it. Without a template: the texts, then 'Answer:'. Without tags, `think` changes nothing.
    Raises BadInput when the template refuses the messages.
    """
    if template := template_of(tokenizer):
        options = {SWITCH: think} if re.search(rf"\b{SWITCH}\b", template) else {}
        try:
            text: str = tokenizer.apply_chat_template(
                [dict(m) for m in messages], tokenize=False, add_generation_prompt=True, **options
            )
        except Exception as error:  # templates raise what they like
            line = str(error).strip().splitlines()
            raise BadInput(f"the chat template refuses these messages: {line[0] if line else type(error)}") from error
    else:
        text = "\n\n".join(m["content"].strip() for m in messages) + "\nAnswer:"
        if tags is not None:
            text += " "
    if tags is None:
        return text
    tail = text.rpartition(messages[-1]["content"].strip())[2]  # a user may write of tags, too
    opened = tail.rfind(tags.open) > tail.rfind(tags.close)
    closed = not opened and tags.close in tail
    if think:
        return text if opened else text + tags.open
    if closed:
        return text
    return text + tags.close if opened else text + tags.open + tags.close
