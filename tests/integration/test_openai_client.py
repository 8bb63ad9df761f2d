"""The official client, unmodified, call by call, against the real HTTP server and store."""

import asyncio
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from glinthawk.gateway.store.records import BatchStatus, FilePurpose, RequestCounts
from unit.gateway.factories import END
from unit.gateway.http.serving import MODELS, Served, serve

KEY = "gh-secret"
MESSAGES: Any = [{"role": "user", "content": "Say hello"}]
LINE = {
    "custom_id": "a",
    "method": "POST",
    "url": "/v1/chat/completions",
    "body": {"model": "tiny", "messages": MESSAGES},
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve(tmp_path_factory.mktemp("data"), keys={KEY: "alice"}) as served:
        yield served


@pytest.fixture
def served(shared: Served) -> Served:
    shared.tiers.script = [*b"hello world", END]
    shared.tiers.pace_s = 0.0
    shared.tiers.fail_at = None
    return shared


@pytest.fixture
def client(served: Served) -> Iterator[OpenAI]:
    with OpenAI(api_key=KEY, base_url=f"{served.url}/v1", max_retries=0) as client:
        yield client


# --- models


def test_models_are_listed_and_retrieved_by_each_served_name(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == list(MODELS)
    for name in MODELS:
        model = client.models.retrieve(name)
        assert (model.id, model.object, model.owned_by) == (name, "model", "glinthawk")


def test_a_model_that_is_not_there_is_not_found(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-4o")
    assert caught.value.code == "model_not_found"


# --- chat


def test_a_chat_completion_has_its_text_and_counts(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="tiny", messages=MESSAGES)
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", "hello world")
    assert choice.finish_reason == "stop"
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == "tiny"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len("<user:Say hello") == 15
    assert answer.usage.completion_tokens == len("hello world") + 1
    assert answer.usage.total_tokens == 15 + 12


def test_a_chat_stream_begins_with_the_role_and_ends_with_the_reason(client: OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="org/tiny",
            messages=MESSAGES,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    first, last = chunks[0].choices[0], chunks[-2].choices[0]
    assert (first.delta.role, first.delta.content) == ("assistant", "")
    assert all(chunk.choices[0].delta.role is None for chunk in chunks[1:-1])
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks[:-1]]
    assert "".join(texts) == "hello world"
    assert (last.delta.content, last.finish_reason) == (None, "stop")
    assert all(chunk.choices[0].finish_reason is None for chunk in chunks[:-2])
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 12
    assert len({chunk.id for chunk in chunks}) == 1
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert {chunk.model for chunk in chunks} == {"org/tiny"}


def test_without_the_option_a_stream_has_no_usage(client: OpenAI) -> None:
    chunks = list(client.chat.completions.create(model="tiny", messages=MESSAGES, stream=True))
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)


def test_the_streaming_helper_rebuilds_the_whole_message(client: OpenAI) -> None:
    with client.chat.completions.stream(model="tiny", messages=MESSAGES) as stream:
        for _ in stream:
            pass
        message = stream.get_final_completion().choices[0].message
    assert message.content == "hello world"


def test_choices_of_a_stream_come_interleaved_and_each_is_whole(
    client: OpenAI, served: Served
) -> None:
    served.tiers.pace_s = 0.002
    chunks = list(client.chat.completions.create(model="tiny", messages=MESSAGES, stream=True, n=3))
    order = [chunk.choices[0].index for chunk in chunks]
    assert order != sorted(order)
    for index in range(3):
        mine = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == index]
        assert mine[0].delta.role == "assistant"
        assert "".join(one.delta.content or "" for one in mine) == "hello world"
        assert [one.finish_reason for one in mine][-1] == "stop"


def test_chat_logprobs_stand_beside_each_token(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=MESSAGES, logprobs=True, top_logprobs=2, max_tokens=3
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert [one.token for one in logprobs.content] == ["h", "e", "l"]
    assert logprobs.content[0].bytes == [ord("h")]
    assert [(top.token, top.logprob) for top in logprobs.content[0].top_logprobs] == [
        ("h", -0.25),
        ("x", -1.5),
    ]


def test_streamed_chat_logprobs_are_those_of_the_whole_answer(client: OpenAI) -> None:
    fields: Any = {"model": "tiny", "messages": MESSAGES, "logprobs": True, "top_logprobs": 1}
    whole = client.chat.completions.create(**fields).choices[0].logprobs
    parts = []
    for chunk in client.chat.completions.create(**fields, stream=True):
        logprobs = chunk.choices[0].logprobs
        parts += logprobs.content or [] if logprobs is not None else []
    assert whole is not None
    assert parts == whole.content


# --- completions


def test_completions_of_several_prompts_echo_them(client: OpenAI) -> None:
    answer = client.completions.create(model="tiny", prompt=["ab", "cde"], echo=True, n=2)
    assert [choice.text for choice in answer.choices] == [
        "abhello world",
        "abhello world",
        "cdehello world",
        "cdehello world",
    ]
    assert answer.object == "text_completion"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 5


def test_a_completion_stream_grows_to_the_whole_text(client: OpenAI) -> None:
    stream = client.completions.create(
        model="tiny", prompt="ab", echo=True, stream=True, stop="wor", max_tokens=50
    )
    chunks = [chunk.choices[0] for chunk in stream]
    assert "".join(chunk.text for chunk in chunks) == "abhello "
    assert [chunk.finish_reason for chunk in chunks[-2:]] == [None, "stop"]


@pytest.mark.parametrize("echo", [False, True])
def test_streamed_completion_logprobs_are_those_of_the_whole_answer(
    client: OpenAI, echo: bool
) -> None:
    fields: Any = {"model": "tiny", "prompt": "abc", "logprobs": 2, "echo": echo}
    whole = client.completions.create(**fields).choices[0].logprobs
    parts = [
        chunk.choices[0].logprobs for chunk in client.completions.create(**fields, stream=True)
    ]
    assert whole is not None
    assert whole.tokens is not None
    assert len(whole.tokens) == (3 if echo else 0) + 12
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        joined = [one for part in parts if part is not None for one in getattr(part, name)]
        assert joined == getattr(whole, name)


def test_a_prompt_can_be_scored_without_generating(client: OpenAI) -> None:
    fields: Any = {"model": "tiny", "prompt": "abc", "logprobs": 1, "echo": True, "max_tokens": 0}
    whole = client.completions.create(**fields).choices[0]
    assert whole.text == "abc"
    assert whole.logprobs is not None
    assert whole.logprobs.token_logprobs == [None, -0.25, -0.25]
    (chunk,) = list(client.completions.create(**fields, stream=True))
    assert chunk.choices[0].logprobs == whole.logprobs
    assert chunk.choices[0].text == "abc"


# --- many at once


def test_many_streams_of_the_asynchronous_client_are_whole(served: Served) -> None:
    async def read(client: AsyncOpenAI, text: str) -> str:
        message: Any = {"role": "user", "content": text}
        stream = await client.chat.completions.create(model="tiny", messages=[message], stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def read_all() -> list[str]:
        async with AsyncOpenAI(api_key=KEY, base_url=f"{served.url}/v1", max_retries=0) as client:
            return await asyncio.gather(*(read(client, "x" * size) for size in range(1, 41)))

    assert asyncio.run(read_all()) == ["hello world"] * 40


# --- errors


def test_an_unknown_model_is_not_found(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-4o", messages=MESSAGES)
    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"
    assert "'tiny'" in caught.value.message


def test_a_wrong_field_is_named(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tiny", messages=MESSAGES, temperature=9)
    assert caught.value.param == "temperature"
    assert caught.value.type == "invalid_request_error"
    assert caught.value.code is None


def test_a_prompt_that_does_not_fit_has_the_code_that_clients_look_for(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="tiny", prompt="x" * 500)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "prompt")
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=500)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "max_tokens")


def test_every_answer_names_its_call(client: OpenAI) -> None:
    answers = [client.chat.completions.create(model="tiny", messages=MESSAGES) for _ in range(2)]
    with pytest.raises(openai.NotFoundError) as caught:
        client.batches.retrieve("batch_none")
    ids = {*(answer._request_id for answer in answers), caught.value.request_id}
    assert len(ids) == 3
    assert all(one is not None and one.startswith("req_") for one in ids)


def test_a_wrong_key_is_refused(served: Served) -> None:
    with (
        OpenAI(api_key="wrong", base_url=f"{served.url}/v1", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError) as caught,
    ):
        client.models.list()
    assert caught.value.code == "invalid_api_key"


def test_a_row_that_breaks_is_an_error_of_the_call(client: OpenAI, served: Served) -> None:
    served.tiers.fail_at = 0
    with pytest.raises(openai.InternalServerError, match="not finite"):
        client.chat.completions.create(model="tiny", messages=MESSAGES)
    with pytest.raises(openai.InternalServerError, match="not finite"):
        client.chat.completions.create(model="tiny", messages=MESSAGES, stream=True)


def test_a_stream_that_breaks_ends_with_the_error(client: OpenAI, served: Served) -> None:
    served.tiers.fail_at = 5
    texts: list[str] = []

    def read() -> None:
        for chunk in client.chat.completions.create(model="tiny", messages=MESSAGES, stream=True):
            texts.append(chunk.choices[0].delta.content or "")  # noqa: PERF401 - it raises

    with pytest.raises(openai.APIError, match="not finite"):
        read()
    assert "".join(texts) == "hello"


# --- files


def upload(client: OpenAI, content: bytes, name: str = "in.jsonl") -> Any:
    return client.files.create(file=(name, content), purpose="batch")


def test_a_file_is_uploaded_read_back_and_deleted(client: OpenAI, tmp_path: Path) -> None:
    content = b'{"custom_id": "\xc3\xa4"}\r\n' * 5000
    path = tmp_path / "requests.jsonl"
    path.write_bytes(content)
    with path.open("rb") as source:
        file = client.files.create(file=source, purpose="batch")
    assert (file.object, file.purpose, file.status) == ("file", "batch", "processed")
    assert (file.filename, file.bytes) == ("requests.jsonl", len(content))
    assert client.files.retrieve(file.id) == file
    assert client.files.content(file.id).read() == content
    deleted = client.files.delete(file.id)
    assert (deleted.id, deleted.deleted) == (file.id, True)
    for call in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError):
            call(file.id)


def test_files_are_listed_in_pages_newest_first(client: OpenAI) -> None:
    made = [upload(client, b"{}\n", f"{index}.jsonl").id for index in range(5)]
    page = client.files.list(limit=2)
    assert [file.id for file in page.data] == made[:2:-1]
    assert page.has_more
    assert [file.id for file in client.files.list(limit=2)][:5] == made[::-1]
    ascending = [file.id for file in client.files.list(order="asc", limit=3)]
    assert ascending[-5:] == made
    assert list(client.files.list(purpose="fine-tune")) == []
    assert made[0] in [file.id for file in client.files.list(purpose="batch")]


def test_another_purpose_is_refused_by_name(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.files.create(file=("a.jsonl", b"{}"), purpose="fine-tune")
    assert caught.value.param == "purpose"


def test_a_file_over_the_bound_is_refused_and_nothing_is_kept(
    client: OpenAI, served: Served
) -> None:
    before = [file.id for file in served.store.list_files(limit=100)]
    with pytest.raises(openai.APIStatusError) as caught:
        client.files.create(file=io.BytesIO(b"x" * (300 << 10)), purpose="batch")
    assert caught.value.status_code == 413
    assert [file.id for file in served.store.list_files(limit=100)] == before


# --- batches


def test_a_batch_goes_from_creation_to_its_files(client: OpenAI, served: Served) -> None:
    file = upload(client, json.dumps(LINE).encode())
    batch = client.batches.create(
        input_file_id=file.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        metadata={"team": "a"},
    )
    assert served.jobs.created[-1] == batch.id
    assert (batch.object, batch.status) == ("batch", "validating")
    assert batch.metadata == {"team": "a"}
    assert batch.expires_at == batch.created_at + 24 * 3600
    assert batch.request_counts is not None
    assert batch.request_counts.total == 0
    output = served.store.add_file(
        [b"{}\n"], purpose=FilePurpose.BATCH_OUTPUT, filename="out.jsonl"
    )
    served.store.update_batch(
        batch.id,
        only_from=[BatchStatus.VALIDATING],
        status=BatchStatus.COMPLETED,
        completed_at=batch.created_at + 5,
        output_file_id=output.id,
        total=1,
    )
    done = client.batches.retrieve(batch.id)
    assert (done.status, done.output_file_id) == ("completed", output.id)
    assert done.completed_at == batch.created_at + 5
    assert done.request_counts is not None
    assert done.request_counts.total == RequestCounts(total=1).total
    assert done.output_file_id is not None
    assert client.files.content(done.output_file_id).text == "{}\n"
    with pytest.raises(openai.ConflictError) as caught:
        client.batches.cancel(batch.id)
    assert "completed" in caught.value.message


def test_batches_are_listed_in_pages_and_cancelled_once(client: OpenAI, served: Served) -> None:
    file = upload(client, json.dumps(LINE).encode())
    fields: Any = {"input_file_id": file.id, "endpoint": "/v1/completions"}
    made = [client.batches.create(**fields, completion_window=f"{n}d").id for n in (1, 2, 30)]
    page = client.batches.list(limit=2)
    assert [batch.id for batch in page.data] == made[:0:-1]
    assert page.has_more
    assert [batch.id for batch in client.batches.list(limit=2)][:3] == made[::-1]
    cancelled = client.batches.cancel(made[0])
    assert cancelled.status == "cancelling"
    assert cancelled.cancelling_at is not None
    assert client.batches.cancel(made[0]) == cancelled
    assert served.jobs.cancelled[-1] == made[0]
    with pytest.raises(openai.BadRequestError, match="not over"):
        client.files.delete(file.id)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"completion_window": "24 hours"}, "completion_window"),
        ({"completion_window": "0h"}, "completion_window"),
        ({"completion_window": "9999d"}, "completion_window"),
        ({"endpoint": "/v1/embeddings"}, "endpoint"),
        ({"input_file_id": "file-none"}, "input_file_id"),
        ({"metadata": {str(n): "" for n in range(17)}}, "metadata"),
        ({"metadata": {"k" * 65: ""}}, "metadata"),
        ({"metadata": {"k": "v" * 513}}, "metadata.k"),
        ({"extra_body": {"priority": 1.5}}, "priority"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 9999}}, None),
    ],
)
def test_a_wrong_batch_is_refused_by_its_field(
    client: OpenAI, change: dict[str, Any], param: str | None
) -> None:
    file = upload(client, json.dumps(LINE).encode())
    fields: dict[str, Any] = {
        "input_file_id": file.id,
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
    }
    with pytest.raises(openai.BadRequestError) as caught:
        client.batches.create(**(fields | change))
    assert caught.value.param == (param or "output_expires_after")


def test_priority_is_kept(client: OpenAI) -> None:
    file = upload(client, json.dumps(LINE).encode())
    batch = client.batches.create(
        input_file_id=file.id,
        endpoint="/v1/chat/completions",
        completion_window="1h",
        extra_body={"priority": 7},
    )
    assert batch.to_dict()["priority"] == 7
