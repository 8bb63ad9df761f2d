"""Whatever is done to it, in whatever order, the store on SQLite equals a model in memory."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from glinthawk.errors import GlinthawkError
from glinthawk.gateway.store.interface import Store
from glinthawk.gateway.store.records import (
    BatchStatus,
    FilePurpose,
    KeyRecord,
    LineRecord,
    LineResult,
)
from glinthawk.gateway.store.sql import SqlStore, open_store
from store_model import ModelStore
from unit.gateway.store.factories import START, FakeClock, add_batch

NUMBERS = st.integers(1, 12)
CUSTOM_IDS = st.sampled_from(["a", "b", "c", "d" * 40, "e" * 40, "\ud800"])
LINES = st.lists(st.tuples(NUMBERS, CUSTOM_IDS), max_size=6, unique_by=lambda line: line[0])
RESULTS = st.lists(st.tuples(NUMBERS, st.booleans(), st.binary(max_size=4)), max_size=6)
STATUSES = st.sampled_from(BatchStatus)
PICK = st.integers(0, 99)
NAMES = st.sampled_from(["ann", "bob"])


class StoreMachine(RuleBasedStateMachine):
    """Each rule does one thing to both; ids differ, so they are known by their place."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self._clock = FakeClock()
        root = Path(self._folder.name)
        self._sql_dir = root / "sql"
        (root / "model").mkdir()
        self.sql: SqlStore = open_store(self._sql_dir, clock=self._clock)
        self.model = ModelStore(root / "model", self._clock)
        self.files: list[tuple[str, str]] = []
        self.batches: list[tuple[str, str]] = []

    def teardown(self) -> None:
        self.sql.close()
        self._folder.cleanup()

    def both(self, call: Callable[[Store, int], Any]) -> tuple[Any, Any]:
        """Call both, and hold that both return, or raise an error of the same kind."""
        outcomes = []
        for side, store in enumerate((self.sql, self.model)):
            try:
                outcomes.append((None, call(store, side)))
            except GlinthawkError as error:
                outcomes.append((type(error), None))
        (sql_error, sql_value), (model_error, model_value) = outcomes
        assert sql_error == model_error
        return sql_value, model_value

    @rule(content=st.lists(st.binary(max_size=5)), purpose=st.sampled_from(FilePurpose))
    def add_file(self, content: list[bytes], purpose: FilePurpose) -> None:
        added = self.both(lambda store, _: store.add_file(content, purpose=purpose, filename="x"))
        self.files.append((added[0].id, added[1].id))

    @precondition(lambda self: self.files)
    @rule(pick=PICK)
    def delete_file(self, pick: int) -> None:
        pair = self.files[pick % len(self.files)]
        self.both(lambda store, side: store.delete_file(pair[side]))

    @precondition(lambda self: self.files)
    @rule(pick=PICK, status=STATUSES, created_at=st.integers(START, START + 2))
    def create_batch(self, pick: int, status: BatchStatus, created_at: int) -> None:
        pair = self.files[pick % len(self.files)]
        added = self.both(
            lambda store, side: add_batch(store, pair[side], status=status, created_at=created_at)
        )
        if added[0] is not None:
            self.batches.append((added[0].id, added[1].id))

    @precondition(lambda self: self.batches)
    @rule(pick=PICK, only_from=st.lists(STATUSES), status=STATUSES, total=st.integers(0, 9))
    def update_batch(
        self, pick: int, only_from: list[BatchStatus], status: BatchStatus, total: int
    ) -> None:
        pair = self.batches[pick % len(self.batches)]
        self.both(
            lambda store, side: store.update_batch(
                pair[side], only_from=only_from, status=status, total=total
            )
        )

    @precondition(lambda self: self.batches)
    @rule(pick=PICK, lines=LINES)
    def add_lines(self, pick: int, lines: list[tuple[int, str]]) -> None:
        pair = self.batches[pick % len(self.batches)]
        records = [LineRecord(number, custom_id, number, 1) for number, custom_id in lines]
        refused = self.both(lambda store, side: list(store.add_lines(pair[side], records)))
        assert refused[0] == refused[1]

    @precondition(lambda self: self.batches)
    @rule(results=st.lists(st.tuples(PICK, RESULTS), max_size=3))
    def add_results(self, results: list[tuple[int, list[tuple[int, bool, bytes]]]]) -> None:
        by_batch = {
            self.batches[pick % len(self.batches)]: [LineResult(*answer) for answer in answers]
            for pick, answers in results
        }
        self.both(
            lambda store, side: store.add_results(
                {pair[side]: answers for pair, answers in by_batch.items()}
            )
        )

    @precondition(lambda self: self.batches)
    @rule(pick=PICK)
    def drop_lines(self, pick: int) -> None:
        pair = self.batches[pick % len(self.batches)]
        self.both(lambda store, side: store.drop_lines(pair[side]))

    @rule(name=NAMES, number=st.integers(0, 10_000), created_at=st.integers(0, 3))
    def add_key(self, name: str, number: int, created_at: int) -> None:
        key = KeyRecord(f"key_{len(self.model.keys)}", name, f"{number:064x}", created_at)
        self.both(lambda store, _: store.add_key(key))

    @rule(name=NAMES)
    def revoke_key(self, name: str) -> None:
        revoked = self.both(lambda store, _: store.revoke_key(name, now=START))
        assert revoked[0] == revoked[1]

    @rule()
    def reserve_epochs(self) -> None:
        epochs = self.both(lambda store, _: store.reserve_epochs(3))
        assert epochs[0] == epochs[1]

    @rule(seconds=st.integers(-1, 1))
    def let_time_pass(self, seconds: int) -> None:
        self._clock.now += seconds

    @rule()
    def restart(self) -> None:
        self.sql.close()
        self.sql = open_store(self._sql_dir, clock=self._clock)

    @invariant()
    def files_are_equal(self) -> None:
        places = [{pair[side]: n for n, pair in enumerate(self.files)} for side in (0, 1)]
        lists = self.both(
            lambda store, side: [
                (places[side][file.id], file.num_bytes, file.created_at, file.purpose)
                for file in store.list_files(limit=1_000)
            ]
        )
        assert lists[0] == lists[1]
        contents = self.both(
            lambda store, _: [store.file_path(f.id).read_bytes() for f in store.list_files(limit=9)]
        )
        assert contents[0] == contents[1]

    @invariant()
    def batches_are_equal(self) -> None:
        places = [{pair[side]: n for n, pair in enumerate(self.batches)} for side in (0, 1)]
        for newest_first in (True, False):
            lists = self.both(
                lambda store, side, newest_first=newest_first: [
                    (places[side][batch.id], batch.status, batch.counts)
                    for batch in store.list_batches(limit=1_000, newest_first=newest_first)
                ]
            )
            assert lists[0] == lists[1]

    @invariant()
    def lines_and_keys_are_equal(self) -> None:
        for pair in self.batches:
            waiting = self.both(
                lambda store, side, pair=pair: [
                    list(store.next_lines(pair[side], after=after, limit=3)) for after in (0, 4)
                ]
            )
            assert waiting[0] == waiting[1]
            for is_error in (True, False):
                # Within one commit, results are in no promised order between the two kinds.
                results = self.both(
                    lambda store, side, pair=pair, is_error=is_error: list(
                        store.iterate_results(pair[side], is_error=is_error)
                    )
                )
                assert results[0] == results[1]
        assert list(self.sql.list_keys()) == list(self.model.list_keys())


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(
    max_examples=25,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
