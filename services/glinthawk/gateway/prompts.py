"""The prompt of a request: from text, messages or token ids to token ids."""

from dataclasses import dataclass

from glinthawk.errors import InvalidRequest
from glinthawk.gateway.fields import Fields, check_text, is_int, shown
from glinthawk.gateway.sampling_fields import check_token_id
from glinthawk.models.tokenizer import Tokenizer

MAX_PROMPTS = 2048
"""Most prompts of one /v1/completions request."""

_ROLES = ("system", "developer", "user", "assistant")


@dataclass(frozen=True)
class Prompt:
    """A tokenized prompt. text: as the caller wrote it, where it was written as text."""

    tokens: tuple[int, ...]
    text: str | None = None


def parse_messages(fields: Fields, tokenizer: Tokenizer, vocab_size: int) -> Prompt:
    """Return the conversation of a chat request in the model's own template.

    vocab_size: of the model, which may have more tokens than its tokenizer, or fewer.

    Raises:
        InvalidRequest: no messages, an unknown role, content that is not text, or a
            conversation that the template refuses.
    """
    messages = fields.get("messages")
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest("messages must be a list with at least one message", param="messages")
    checked = [_check_message(message, index) for index, message in enumerate(messages)]
    tokens = tokenizer.apply_chat_template(checked)
    if not tokens:
        raise InvalidRequest("messages give no token with this chat template", param="messages")
    return Prompt(_check_range(tokens, vocab_size, "messages"))


def parse_prompts(fields: Fields, tokenizer: Tokenizer, vocab_size: int) -> tuple[Prompt, ...]:
    """Return the prompts of a completions request.

    prompt: "text" | ["text", ...] | [token, ...] | [[token, ...], ...]

    Raises:
        InvalidRequest: another form, an empty prompt, or a token outside the vocabulary.
    """
    value = fields.get("prompt")
    if isinstance(value, str):
        return (_encode(value, "prompt", tokenizer, vocab_size),)
    if not isinstance(value, list) or not value:
        raise InvalidRequest(
            "prompt must be a string, a list of strings, a list of token ids, or a list of "
            f"such lists, and not empty; it is {shown(value)}",
            param="prompt",
        )
    if is_int(value[0]):
        return (_check_tokens(value, "prompt", vocab_size),)
    if len(value) > MAX_PROMPTS:
        raise InvalidRequest(
            f"prompt has {len(value)} prompts; at most {MAX_PROMPTS} are allowed in one request",
            param="prompt",
        )
    if isinstance(value[0], str):
        return tuple(
            _encode(text, f"prompt[{i}]", tokenizer, vocab_size) for i, text in enumerate(value)
        )
    return tuple(_check_tokens(one, f"prompt[{i}]", vocab_size) for i, one in enumerate(value))


def _encode(text: object, where: str, tokenizer: Tokenizer, vocab_size: int) -> Prompt:
    checked = check_text(text, where)
    tokens = tokenizer.encode(checked, add_special_tokens=True)
    if not tokens:
        raise InvalidRequest(f"{where} is empty; at least one token is needed", param="prompt")
    return Prompt(_check_range(tokens, vocab_size, "prompt"), checked)


def _check_range(tokens: list[int], vocab_size: int, param: str) -> tuple[int, ...]:
    """Refuse a text with a token that the tokenizer has and the model has not."""
    if max(tokens) >= vocab_size:
        raise InvalidRequest(
            f"{param} holds a text whose token id {max(tokens)} the model does not have; it has "
            f"{vocab_size} tokens. Leave out that special text",
            param=param,
        )
    return tuple(tokens)


def _check_tokens(tokens: object, where: str, vocab_size: int) -> Prompt:
    if not isinstance(tokens, list):
        raise InvalidRequest(f"{where} must be a list of token ids", param="prompt")
    if not tokens:
        raise InvalidRequest(f"{where} is empty; at least one token is needed", param="prompt")
    return Prompt(tuple(check_token_id(token, vocab_size, "prompt") for token in tokens))


def _check_message(message: object, index: int) -> dict[str, str]:
    """Return a message as templates read it: role, content as one string, and name if any."""
    where = f"messages[{index}]"
    if not isinstance(message, dict):
        raise InvalidRequest(f"{where} must be an object", param=where)
    role = message.get("role")
    if role not in _ROLES:
        raise InvalidRequest(
            f"{where}.role must be one of {', '.join(_ROLES)}, not {shown(role)}",
            param=f"{where}.role",
        )
    for name, value in message.items():
        if name not in ("role", "content", "name") and value not in (None, []):
            raise InvalidRequest(f"{where}.{name} is not supported", param=f"{where}.{name}")
    # OpenAI's "developer" is its later name for "system"; models' templates know the latter.
    checked = {"role": "system" if role == "developer" else role}
    checked["content"] = _check_content(message.get("content"), f"{where}.content")
    if message.get("name") is not None:
        checked["name"] = check_text(message["name"], f"{where}.name")
    return checked


def _check_content(content: object, where: str) -> str:
    """Return the content as one string; text parts are joined by line ends, as vLLM does."""
    if not isinstance(content, list):
        return check_text(content, where)
    if not content:
        raise InvalidRequest(f"{where} has no parts", param=where)
    texts = []
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(part, dict) or kind != "text":
            raise InvalidRequest(
                f"{where}[{index}]: parts of type 'text' are supported, not {shown(kind)}",
                param=where,
            )
        texts.append(check_text(part.get("text"), f"{where}[{index}].text"))
    return "\n".join(texts)
