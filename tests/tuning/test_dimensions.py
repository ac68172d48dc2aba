"""The choices of each dimension, on machines that are described: GPUs, cores, memory nodes."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import moebind
from moebind import ContextParams, FlashAttnType, GgmlType, LoadMode, ModelParams
from moebind.backend.devices import describe
from moebind.placement.described_devices import described_device
from moebind.placement.header import read_header
from moebind.placement.search import Search
from moebind.tuning import dimensions
from moebind.tuning.configuration import MIN_BATCH, Configuration
from moebind.tuning.dimensions import ASKED, DIMENSIONS, Choices, Planner
from moebind.tuning.goals import checked_goal
from moebind.tuning.machine import Processors
from moebind.tuning.search import Choice

MakeTiny = Callable[..., Path]
MakePlanner = Callable[..., Planner]
CONTEXT = ContextParams(n_ctx=512, n_threads=4, n_threads_batch=4)
LAYERS = 6
#: Four cores of two processors each, on two memory nodes; and two cores.
LARGE = Processors(((0, 4), (1, 5), (2, 6), (3, 7)), ((0, 1, 4, 5), (2, 3, 6, 7)))
PLAIN = Processors(((0,), (1,)), ((0, 1),))
#: Of the goal "long-prompt" with prompts of this model's length.
LONG = checked_goal("long-prompt", 400, 16)


@pytest.fixture(scope="module")
def path(tiny_path: MakeTiny) -> Path:
    return tiny_path(n_expert=8, n_embd=256, n_head=4, n_head_kv=2, n_ff=384, n_layer=LAYERS)


@pytest.fixture(scope="module")
def dense_path(tiny_path: MakeTiny) -> Path:
    return tiny_path(n_layer=3)


@pytest.fixture
def planner(path: Path) -> MakePlanner:
    def make(
        room: float | None = 1.0,
        *,
        model: ModelParams | None = None,
        processors: Processors = PLAIN,
        fields: Sequence[str] = (),
        goal: Any = LONG,
        file: Path = path,
    ) -> Planner:
        """With a GPU that has room for such a share of the model; None: without one."""
        natives = [] if room is None else [described_device(0, "1GiB")]
        devices = [describe(at, native) for at, native in enumerate(natives)]
        given = ModelParams() if model is None else model
        search = Search(read_header(str(file)), natives, {})
        whole = search.plan(given.with_devices(devices), CONTEXT)
        if room is not None:
            on_host = given.with_cpu_moe_all() if search.header.experts else given
            bare = search.plan(on_host.with_devices(devices), CONTEXT).devices[0].total
            full = whole.devices[0].total
            search.budgets = {"GPU0": int(bare + room * (full - bare))}
        configured = Configuration.of(given, CONTEXT)
        return Planner(search, configured, frozenset(fields), devices, processors, goal)

    return make


def choices(planner: Planner, dimension: str, current: Configuration | None = None) -> list[Choice[Configuration]]:
    found: Choices = DIMENSIONS[dimension](planner, planner.given if current is None else current)
    assert not isinstance(found, str), found
    return list(found)


def reason(planner: Planner, dimension: str, current: Configuration | None = None) -> str:
    found: Choices = DIMENSIONS[dimension](planner, planner.given if current is None else current)
    assert isinstance(found, str), found
    return found


def names(found: Sequence[Choice[Configuration]], *, refused: bool = False) -> set[str]:
    return {each.name for each in found if (each.refused is not None) == refused}


def test_placements(planner: MakePlanner) -> None:
    made = planner(0.55)
    found = choices(made, "placement")
    assert names(found) >= {
        "as moebind.fit places it",
        "experts of the first 3 layers in host memory",
        "experts of the last 3 layers in host memory",
        "all experts in host memory",
        "nothing on the devices",
    }
    assert any(name.endswith("whole layers on the devices") for name in names(found))
    assert "everything on the devices" in names(found, refused=True)
    assert {name for name in names(found) | names(found, refused=True) if "of all experts" in name} == {
        f"ffn_{kind} of all experts in host memory" for kind in ("down", "gate", "up")
    }
    by_name = {each.name: each.subject.model_params for each in found}
    assert by_name["experts of the first 3 layers in host memory"] == ModelParams().with_n_cpu_moe(3)
    [rule] = by_name["experts of the last 3 layers in host memory"].tensor_overrides
    assert rule.pattern.startswith(r"blk\.(3|4|5)")


@pytest.mark.parametrize("room", [0.05, 0.3, 0.55, 0.9, 1.0])
@pytest.mark.parametrize("dimension", ["placement", "micro-batch", "expert cache", "load mode", "cache types"])
def test_no_choice_takes_more_than_it_may(planner: MakePlanner, room: float, dimension: str) -> None:
    made = planner(room)
    start = made.placed_anew(made.given, CONTEXT)
    current = made.given if start is None else made.given.with_model(start.with_devices(None))
    assert made.refusal(made.model(current), CONTEXT) is None
    found = DIMENSIONS[dimension](made, current)
    for each in () if isinstance(found, str) else found:
        excess = made.search.excess(made.plan(each.subject)) if each.refused is None else {"GPU0": 1}
        assert (max(excess.values()) <= 0) == (each.refused is None)
        if each.refused is not None:
            assert "more than GPU0 may" in each.refused or dimension == "expert cache"


def test_without_a_device_there_is_nothing_to_place(planner: MakePlanner) -> None:
    made = planner(None)
    for dimension in ("placement", "expert cache"):
        assert reason(made, dimension) == "there is no device besides the processor"
    assert reason(made, "pinned memory") == "no device has pinned memory"
    assert reason(made, "offloaded work") == "no device takes over work on weights of the host"


def test_what_the_caller_has_set_is_kept(planner: MakePlanner) -> None:
    made = planner(0.5, model=ModelParams().with_n_cpu_moe(4), fields=["tensor_overrides"])
    assert reason(made, "placement") == "tensor_overrides: as you set it"
    assert "placed anew" not in " ".join(names(choices(made, "micro-batch")))
    kept = {
        "n_ubatch": "micro-batch",
        "n_threads": "threads",
        "n_threads_batch": "batch threads",
        "load_mode": "load mode",
        "use_extra_bufts": "repacking",
        "no_host": "pinned memory",
        "op_offload": "offloaded work",
        "flash_attn_type": "flash attention",
        "type_k": "cache types",
        "moe_cache_size": "expert cache",
    }
    for name, dimension in kept.items():
        assert reason(planner(fields=[name]), dimension) == f"{name}: as you set it"


def test_micro_batches_with_a_new_placement(planner: MakePlanner) -> None:
    made = planner(0.7)
    current = made.given.with_model(ModelParams().with_n_cpu_moe(3))
    found = choices(made, "micro-batch", current)
    sizes = {each.subject.context_params.n_ubatch for each in found}
    assert sizes == {128, 256}  # 512 is the present one, and no prompt is longer
    for each in found:
        anew = each.name.endswith("placed anew")
        assert (each.subject.model != current.model) == anew
        assert each.subject.context_params.n_batch >= each.subject.context_params.n_ubatch
    assert any(each.name.endswith("placed anew") for each in found)


def test_larger_micro_batches_have_larger_batches(planner: MakePlanner) -> None:
    made = planner(goal=checked_goal("long-prompt", 4000, 16))
    current = made.given.with_context(n_ctx=8192, n_batch=512)
    found = {
        each.subject.context_params.n_ubatch: each.subject.context_params
        for each in choices(made, "micro-batch", current)
    }
    assert set(found) == {128, 256, 1024, 2048, 4096}
    assert found[4096].n_batch == 4096
    assert found[128].n_batch == 512


def test_micro_batches_do_not_matter_without_prompts(planner: MakePlanner) -> None:
    made = planner(goal=checked_goal({"decode": 1}))
    assert reason(made, "micro-batch") == "no prompts count for this goal"
    assert reason(made, "batch threads") == "no prompt and no batch counts for this goal"
    assert reason(planner(goal=checked_goal({"prompt": 1})), "threads") == "no decode counts for this goal"


def test_caches_of_experts(planner: MakePlanner, dense_path: Path) -> None:
    made = planner(0.5)
    found = choices(made, "expert cache", made.given.with_model(ModelParams().with_cpu_moe_all()))
    taken = [each for each in found if each.refused is None]
    assert taken
    for each in taken:
        assert each.subject.context_params.moe_cache_size in {
            int(share * made.search.budgets["GPU0"]) // 2**20 * 2**20 for share in (0.25, 0.5, 0.75)
        }
        assert made.plan(each.subject).devices[0].moe_cache > 0
        assert reason(made, "repacking", each.subject) == "experts that are repacked cannot be cached"
        assert "expert cache off" in names(choices(made, "expert cache", each.subject))
    assert reason(planner(file=dense_path), "expert cache") == "the model has no experts"
    # A placement that leaves nothing to cache is tried without a cache, with which no context can be made.
    placed = {each.name: each for each in choices(planner(1.0), "placement", taken[0].subject)}
    assert placed["everything on the devices"].refused is None
    assert placed["everything on the devices"].subject.context_params.moe_cache_size == 0
    assert placed["all experts in host memory"].subject.context_params.moe_cache_size > 0


def test_threads_go_by_cores(planner: MakePlanner) -> None:
    def counts(processors: Processors, dimension: str = "batch threads") -> set[int]:
        name = {"batch threads": "n_threads_batch", "threads": "n_threads"}[dimension]
        return {each.subject.context[name] for each in choices(planner(processors=processors), dimension)}

    assert counts(LARGE) == {1, 2, 3, 8}  # four are the present ones
    assert counts(PLAIN) == {1, 2}
    assert counts(Processors(LARGE.cores, LARGE.nodes, 2.0), "threads") == {1, 2}
    assert counts(Processors(((0,),), ((0,),))) == {1}


def test_threads_stay_on_the_chosen_processors(planner: MakePlanner) -> None:
    made = planner(processors=LARGE)
    current = made.given.with_process(cpus=(0, 1))
    assert {each.subject.context["n_threads"] for each in choices(made, "threads", current)} == {1, 2}


def test_places_of_threads(planner: MakePlanner) -> None:
    made = planner(processors=LARGE)
    found = {each.name: each.subject.process.cpus for each in choices(made, "affinity")}
    assert found == {
        "one processor of each core": (0, 1, 2, 3),
        "the processors of node 0": (0, 1, 4, 5),
        "the processors of node 1": (2, 3, 6, 7),
    }
    pinned = made.given.with_process(cpus=(0, 1, 2, 3))
    assert "all processors" in names(choices(made, "affinity", pinned))
    assert names(choices(made, "numa")) == {"numa DISTRIBUTE", "numa ISOLATE"}
    assert reason(planner(), "affinity") == "each processor is a core of its own, and there is one memory node"
    assert reason(planner(), "numa") == "there is one memory node"


def test_places_have_no_more_threads_than_processors(planner: MakePlanner) -> None:
    made = planner(processors=LARGE)
    current = made.given.with_context(n_threads=8, n_threads_batch=8)
    for each in choices(made, "affinity", current):
        assert each.subject.context["n_threads"] == 4


def test_load_modes(planner: MakePlanner) -> None:
    made = planner()

    def modes(current: Configuration | None = None) -> set[LoadMode]:
        return {each.subject.model_params.load_mode for each in choices(made, "load mode", current)}

    direct = {LoadMode.DIRECT_IO} if dimensions._reads_directly(made.search.header.paths[0]) else set()
    locked = {LoadMode.MLOCK, LoadMode.MMAP_MLOCK}
    assert modes() == {LoadMode.NONE} | direct | locked  # AUTO maps a file that is for the processor
    read = made.given.with_model(ModelParams().with_load_mode(LoadMode.NONE))
    assert modes(read) == {LoadMode.MMAP} | direct | locked
    made.lockable = 2**12
    assert modes() == {LoadMode.NONE} | direct
    made.lockable = made.plan(made.given).host.model
    assert modes() == {LoadMode.NONE} | direct | locked


def test_files_that_can_only_be_read_through_the_cache(
    planner: MakePlanner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str, flags: int, *more: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return opened(path, flags, *more)

    made = planner()
    assert not dimensions._reads_directly(str(tmp_path / "none"))
    opened = os.open
    monkeypatch.setattr(os, "open", refuse)
    assert not {each.subject.model_params.load_mode for each in choices(made, "load mode")} & {LoadMode.DIRECT_IO}


def test_work_of_devices_on_weights_of_the_host(planner: MakePlanner) -> None:
    made = planner(0.5)
    current = made.given.with_model(ModelParams().with_cpu_moe_all())
    found = {each.name: each.subject for each in choices(made, "offloaded work", current)}
    assert not found["op_offload off"].context_params.op_offload
    assert found["op_offload from 128 tokens on"].process.environment == {MIN_BATCH: "128"}
    again = names(choices(made, "offloaded work", found["op_offload from 128 tokens on"]))
    assert "op_offload from 128 tokens on" not in again
    assert "op_offload from 8 tokens on" in again
    [pinned] = choices(made, "pinned memory", current)
    assert pinned.subject.model_params.no_host


def test_flash_attention(planner: MakePlanner) -> None:
    made = planner()
    [off] = choices(made, "flash attention")
    assert off.subject.context_params.flash_attn_type == FlashAttnType.DISABLED
    [on] = choices(made, "flash attention", off.subject)
    assert on.subject.context_params.flash_attn_type == FlashAttnType.ENABLED
    assert reason(made, "flash attention", made.given.with_context(type_v="Q8_0")) == "a cache of Q8_0 needs it"


def test_types_of_the_cache(planner: MakePlanner) -> None:
    made = planner()
    found = choices(made, "cache types")[0].subject.context_params
    assert (found.type_k, found.type_v, found.flash_attn_type) == (GgmlType.Q8_0, GgmlType.Q8_0, FlashAttnType.AUTO)
    assert {"cache types"} == ASKED


NO_LAYOUT = "this processor has no other layout for the weights in host memory"


def test_weights_with_one_layout_are_not_repacked(planner: MakePlanner) -> None:
    assert reason(planner(None), "repacking") == NO_LAYOUT  # they are F32


def test_repacking(planner: MakePlanner, path: Path, tmp_path: Path) -> None:
    moebind.quantize(path, tmp_path / "small.gguf", moebind.Ftype.Q4_0)
    made = planner(None, file=tmp_path / "small.gguf")
    if not {buffer.name for buffer in made.plan(made.given).host.buffers} & {"CPU_REPACK", "AMX", "CPU_KLEIDIAI"}:
        assert reason(made, "repacking") == NO_LAYOUT
        pytest.skip(NO_LAYOUT)
    [plain] = choices(made, "repacking")
    assert (plain.name, plain.refused) == ("weights as they are in the file", None)
    assert not plain.subject.model_params.use_extra_bufts
    assert {buffer.name for buffer in made.plan(plain.subject).host.buffers} <= {"CPU", "CPU_Mapped"}
    [back] = choices(made, "repacking", plain.subject)
    assert (back.name, back.refused) == ("repacked weights", None)
    assert back.subject.model_params == made.given.model_params


def test_what_the_host_has_no_room_for_is_refused(planner: MakePlanner) -> None:
    made = planner(1.0)
    everything = made.plan(made.given)._host_needs
    [on_host] = [each for each in choices(made, "placement") if each.name == "nothing on the devices"]
    needs = made.plan(on_host.subject)._host_needs
    assert needs > everything
    for room, refused in ((needs, None), (needs - 2**19, "it takes 0.5 MiB more than Host may")):
        made = planner(1.0)
        made.host_room = room
        [on_host] = [each for each in choices(made, "placement") if each.name == "nothing on the devices"]
        assert on_host.refused == refused
        assert made.refusal(made.model(made.given), CONTEXT) is None
    # What the caller allows, and is less, counts before what is free.
    made = planner(1.0)
    made.search.budgets = {**made.search.budgets, "Host": needs - 2**20}
    made.host_room = needs - 2**19
    [on_host] = [each for each in choices(made, "placement") if each.name == "nothing on the devices"]
    assert on_host.refused == "it takes 1.0 MiB more than Host may"


@pytest.fixture(scope="module")
def ahead(tiny_path: MakeTiny) -> Path:
    """A model whose last layer predicts further ahead."""
    return tiny_path(arch="glm4moe", n_layer=4, n_expert=4, n_mtp=1, n_head_kv=4)


def test_what_may_draft(planner: MakePlanner, ahead: Path, dense_path: Path) -> None:
    ngrams = {"ngram-simple drafts", "ngram-mod drafts"}
    own = {f"up to {count} drafted by the model's own layers" for count in ("1 token", "3 tokens", "6 tokens")}
    assert names(choices(planner(), "speculation")) == ngrams
    made = planner(None, file=ahead)
    found = choices(made, "speculation")
    assert names(found) == ngrams | own
    for each in found:
        assert each.subject.model_params.load_mtp == (each.name in own)
    [mtp] = [each.subject for each in found if "3 tokens" in each.name]
    again = choices(made, "speculation", mtp)
    assert names(again) == {"nothing drafts"} | ngrams | own - {"up to 3 tokens drafted by the model's own layers"}
    [none] = [each.subject for each in again if each.name == "nothing drafts"]
    assert (none.speculation, none.model_params.load_mtp) == (None, False)
    made.draft = str(dense_path)
    drafts = {f"up to {count} drafted by {dense_path.name}" for count in ("1 token", "3 tokens", "6 tokens")}
    found = choices(made, "speculation")
    assert names(found) == ngrams | own | drafts
    # llama-server has to be told what kind of draft it is.
    assert {each.subject.speculation.kind for each in found if each.name in drafts} == {"draft-simple"}


def test_drafts_are_for_goals_that_write_text(planner: MakePlanner) -> None:
    assert reason(planner(goal=checked_goal({"prompt": 1})), "speculation") == "no text is written for this goal"
    assert choices(planner(goal=checked_goal("batch", 100)), "speculation")


def test_a_draft_takes_memory_too(planner: MakePlanner, ahead: Path, path: Path) -> None:
    made = planner(1.0, file=ahead)
    made.draft = str(path)  # which is larger than the model
    found = choices(made, "speculation")
    drafts = [each for each in found if path.name in each.name]
    assert len(drafts) == 3
    for each in drafts:
        counted = made.drafting(each.subject)
        plan = counted.plan(each.subject)
        assert plan.draft is not None
        over = {name for name, size in counted.search.excess(plan).items() if size > 0}
        assert bool(over) == (each.refused is not None)
    # With the budget doubled, both have room on the device.
    made.search.budgets = {name: 100 * size for name, size in made.search.budgets.items()}
    assert not [each for each in choices(made, "speculation") if each.refused is not None]


def test_what_cannot_draft_is_a_choice_that_is_refused(planner: MakePlanner, tiny_path: MakeTiny) -> None:
    made = planner()
    made.draft = str(tiny_path(n_layer=1).with_name("none.gguf"))
    refused = [each.refused for each in choices(made, "speculation") if each.refused is not None]
    assert len(refused) == 1
    assert "none.gguf does not exist" in refused[0]


def test_every_dimension_has_choices_or_a_reason(planner: MakePlanner) -> None:
    for made in (planner(None), planner(1.0, processors=LARGE), planner(0.4)):
        for dimension, find in DIMENSIONS.items():
            found = find(made, made.given)
            assert found, dimension
            if not isinstance(found, str):
                assert all(
                    each.subject != made.given or each.refused
                    for each in found
                    if each.name != "everything on the devices"
                )
                assert len({each.name for each in found}) == len(found)
