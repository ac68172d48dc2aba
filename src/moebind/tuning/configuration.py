"""A configuration: all that a trial is made with, as plain values."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from moebind.backend.devices import init
from moebind.enums import NumaStrategy
from moebind.params.params import ContextParams, ModelParams
from moebind.tuning.speculation import Speculation

__all__ = ["MIN_BATCH", "Configuration", "Process"]

#: The environment variable with the number of tokens from which on a device takes over work on the host's weights.
MIN_BATCH = "GGML_OP_OFFLOAD_MIN_BATCH"


@dataclass(frozen=True)
class Process:
    """What is set for a whole process, before it loads anything.

    Attributes
    ----------
    environment : Mapping[str, str]
        Environment variables, which llama.cpp reads once.
    cpus : tuple[int, ...] or None
        The processors that it may run on; None: all that it has.
    numa : str
        The name of a :class:`moebind.NumaStrategy`.
    """

    environment: Mapping[str, str] = field(default_factory=dict)
    cpus: tuple[int, ...] | None = None
    numa: str = NumaStrategy.DISABLED.name

    def apply(self) -> None:
        """Set it for this process.

        Raises
        ------
        MoebindError
            If llama.cpp is initialised already, with another strategy.
        """
        os.environ.update(self.environment)
        if self.cpus is not None:
            os.sched_setaffinity(0, self.cpus)
        if self.numa != NumaStrategy.DISABLED.name:
            init(NumaStrategy[self.numa])

    def __bool__(self) -> bool:
        return self != Process()

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        cpus = None if self.cpus is None else list(self.cpus)
        return {"environment": dict(self.environment), "cpus": cpus, "numa": self.numa}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Process:
        """What :meth:`to_dict` gave."""
        cpus = None if fields["cpus"] is None else tuple(map(int, fields["cpus"]))
        environment = {str(name): str(value) for name, value in fields["environment"].items()}
        return cls(environment, cpus, NumaStrategy[fields["numa"]].name)


@dataclass(frozen=True)
class Configuration:
    """Parameters, as their ``to_dict`` has them, what is set for the process, and what drafts tokens.

    They are plain values, since the process that searches does not look at devices: that would take memory on them. A
    model's ``devices`` are left out where all that the search was given are used.
    """

    model: Mapping[str, Any] = field(default_factory=dict)
    context: Mapping[str, Any] = field(default_factory=dict)
    process: Process = field(default_factory=Process)
    speculation: Speculation | None = None

    @classmethod
    def of(cls, model: ModelParams, context: ContextParams, process: Process | None = None) -> Configuration:
        """From parameters; threads are written down, too, whose defaults depend on the machine."""
        threads = {"n_threads": context.n_threads, "n_threads_batch": context.n_threads_batch}
        return cls(model.to_dict(), {**context.to_dict(), **threads}, process or Process())

    def with_model(self, params: ModelParams) -> Configuration:
        """With another way to load the model."""
        return replace(self, model=params.to_dict())

    def with_context(self, **fields: object) -> Configuration:
        """With other fields of the context, as JSON has them."""
        return replace(self, context={**self.context, **fields})

    def with_process(self, **fields: Any) -> Configuration:
        """With other settings of the process."""
        return replace(self, process=replace(self.process, **fields))

    def with_speculation(self, speculation: Speculation | None) -> Configuration:
        """With something else that drafts, or nothing."""
        return replace(self, speculation=speculation)

    @property
    def loaded(self) -> tuple[Mapping[str, Any], Process]:
        """What has to be the same for two of them to use one loaded model."""
        return self.model, self.process

    @property
    def model_params(self) -> ModelParams:
        """As an object; devices have to be there."""
        return ModelParams.from_dict(self.model)

    @property
    def context_params(self) -> ContextParams:
        """As an object."""
        return ContextParams.from_dict(self.context)

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "model_params": dict(self.model),
            "context_params": dict(self.context),
            **self.process.to_dict(),
            "speculation": None if self.speculation is None else self.speculation.to_dict(),
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Configuration:
        """What :meth:`to_dict` gave."""
        drafts = fields.get("speculation")  # older results have none
        return cls(
            fields["model_params"],
            fields["context_params"],
            Process.from_dict(fields),
            None if drafts is None else Speculation.from_dict(drafts),
        )
