"""No sequence of public calls ends the process: see calls.py, which also has the command for longer runs."""

from __future__ import annotations

from collections.abc import Iterator

import calls
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

#: So many sequences of so many calls: more than 10,000 in all.
SEQUENCES, LENGTH = 250, 50


@pytest.fixture(scope="module")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[calls.Zygote]:
    zygote = calls.Zygote(calls.prepare(tmp_path_factory.mktemp("fuzz")))
    yield zygote
    zygote.close()


@pytest.mark.timeout(600)
def test_sequences_of_calls(zygote: calls.Zygote) -> None:
    done = returned = 0

    class Calls(RuleBasedStateMachine):
        """What was called so far; it is run at the end, in a process that must end by itself."""

        def __init__(self) -> None:
            super().__init__()
            self.sequence: list[calls.Call] = []

        @rule(call=calls.calls())
        def call(self, call: calls.Call) -> None:
            self.sequence.append(call)

        def teardown(self) -> None:
            nonlocal done, returned
            good, finding = zygote.run(self.sequence)
            done, returned = done + len(self.sequence), returned + good
            if finding:
                pytest.fail(calls.shrunk(zygote, self.sequence))

    run_state_machine_as_test(
        Calls,
        settings=settings(
            max_examples=SEQUENCES,
            stateful_step_count=LENGTH,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
    print(f"{done} calls, {returned} returned, the others raised what they may")
    assert done >= 10_000
    assert returned > done / 3  # the others would show little


def test_every_public_call_is_among_them() -> None:
    owners = {member.owner for member in calls.WEIGHTED}
    assert {"", "Model", "Context", "Batch", "Sampler", "TokenDataArray", "ModelParams"} <= owners
    names = {f"{member.owner}.{member.name}".lstrip(".") for member in calls.MEMBERS}
    assert {"Context.decode", "Context.generate", "Model.load_from_file", "Sampler.sample", "devices"} <= names


@pytest.mark.parametrize(
    ("code", "what"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "ended with -11"),
        ("raise AttributeError('a finding')", "AttributeError: a finding"),
    ],
)
def test_findings_are_found(zygote: calls.Zygote, code: str, what: str) -> None:
    member = calls.Member("!", code, ())
    assert what in zygote.run([calls.Call(member, 0, (), (), "here")])[1]
    good, finding = zygote.run([calls.Call(calls.Member("", "devices", ()), 0, (), (), "here")])
    assert (good, finding) == (1, "")
