"""Projectors: what makes embeddings of pictures and sound, which a model takes in the place of tokens."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from itertools import count
from typing import TYPE_CHECKING

import numpy as np

from moebind._core import checks, log
from moebind._core.immutable import changed_by_copying
from moebind._core.model_base import ModelBase
from moebind._core.native import CData, Hooks, decoded, ffi, lib, own
from moebind._core.owner import CallLock
from moebind._core.shown import shown
from moebind.backend import rpc_servers
from moebind.backend.devices import Device, native_device
from moebind.enums import FlashAttnType
from moebind.errors import AbortedError, MtmdError, NativeError
from moebind.files import projector_checks
from moebind.files.download import local_file
from moebind.mtmd.bitmap import Bitmap
from moebind.mtmd.chunks import InputChunk, InputChunks, InputChunkType
from moebind.mtmd.projector_base import ProjectorBase

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["MtmdContext", "MtmdContextParams", "checked_parts", "default_marker"]

_DEFAULT = lib.mtmd_context_params_default()
#: By which chunks know what made them.
_serial = count(1)


def default_marker() -> str:
    """The text that stands for a picture or sound in a prompt (``mtmd_default_marker``)."""
    return decoded(lib.mtmd_default_marker())


@changed_by_copying
@dataclass(frozen=True, kw_only=True)
class MtmdContextParams:
    """How to load a projector (``struct mtmd_context_params``).

    Attributes
    ----------
    use_gpu : bool
        Compute on a device, if the model does.
    device : Device or None
        On which; None: the first of those that the model is on.
    print_timings : bool
        Log how long encoding takes.
    n_threads : int
        Threads that encode, if the CPU does.
    media_marker : str
        The text that stands for a picture or sound in the text of :meth:`MtmdContext.tokenize`.
    flash_attn_type : FlashAttnType
        Whether to use flash attention.
    warmup : bool
        Encode an empty picture after loading, so that the first one takes no longer than the others.
    image_min_tokens, image_max_tokens : int or None
        How many tokens a picture gets, for projectors that take any size; None: what the file says.
    batch_max_tokens : int
        The most tokens that :meth:`MtmdContext.encode_chunks` computes at once.
    """

    use_gpu: bool = True
    device: Device | None = None
    print_timings: bool = False
    n_threads: int = int(lib.moebind_default_n_threads())
    media_marker: str = default_marker()
    flash_attn_type: FlashAttnType = FlashAttnType.AUTO
    warmup: bool = True
    image_min_tokens: int | None = None
    image_max_tokens: int | None = None
    batch_max_tokens: int = int(_DEFAULT.batch_max_tokens)

    def __post_init__(self) -> None:
        for name in ("use_gpu", "print_timings", "warmup"):
            checks.boolean(name, getattr(self, name))
        if self.device is not None and not isinstance(self.device, Device):
            raise TypeError(f"device is {shown(self.device)}; it takes one of moebind.devices(), or None")
        checks.integer("n_threads", self.n_threads, 1, checks.THREADS_MAX)
        if not checks.text("media_marker", self.media_marker):
            raise ValueError("media_marker is empty; it takes a text that prompts do not have otherwise")
        object.__setattr__(
            self, "flash_attn_type", checks.member("flash_attn_type", self.flash_attn_type, FlashAttnType)
        )
        least, most = self.image_min_tokens, self.image_max_tokens
        for name, value in (("image_min_tokens", least), ("image_max_tokens", most)):
            if value is not None:
                checks.integer(name, value, 1, 2**20)
        if least is not None and most is not None and least > most:
            raise ValueError(f"image_min_tokens is {least}, more than image_max_tokens, {most}")
        checks.integer("batch_max_tokens", self.batch_max_tokens, 1)

    def __repr__(self) -> str:
        changed = (each.name for each in fields(self) if getattr(self, each.name) != each.default)
        return f"MtmdContextParams({', '.join(f'{name}={getattr(self, name)!r}' for name in changed)})"

    def _native(self, model: CData) -> tuple[CData, list[object]]:
        """``struct mtmd_context_params *`` for a model, and what it points to."""
        native = ffi.new("struct mtmd_context_params *", lib.mtmd_context_params_default())
        marker = ffi.new("char[]", self.media_marker.encode())
        device = ffi.NULL
        if self.device is not None:
            device = native_device(self.device.name)
        elif self.use_gpu and lib.moebind_model_n_devices(model):
            device = lib.moebind_model_device(model, 0)
        native.device, native.use_gpu = device, self.use_gpu and bool(device)
        native.print_timings, native.warmup = self.print_timings, self.warmup
        native.n_threads = self.n_threads
        native.media_marker = marker
        native.flash_attn_type = self.flash_attn_type
        native.image_min_tokens = -1 if self.image_min_tokens is None else self.image_min_tokens
        native.image_max_tokens = -1 if self.image_max_tokens is None else self.image_max_tokens
        native.batch_max_tokens = self.batch_max_tokens
        return native, [marker]


class MtmdContext(ProjectorBase):
    """A projector, loaded for a model: it turns pictures and sound into what the model reads.

    Made by :meth:`init_from_file`. It keeps its model in memory, and closing the model closes it. Calls from several
    threads wait for each other. It is freed by ``mtmd_free``.

    Examples
    --------
    >>> with MtmdContext.init_from_file("mmproj.gguf", model) as mtmd:
    ...     picture = Bitmap.from_file("photo.jpg")
    ...     print(context.generate([picture, "What is this?"], mtmd=mtmd).complete())
    """

    _model: ModelBase
    _params: MtmdContextParams
    _path: str
    _n_embd: int
    _number: int
    _lock: CallLock
    _hooks: Hooks

    def __init__(self, *_arguments: object, **_keywords: object) -> None:
        raise TypeError("projectors are loaded by MtmdContext.init_from_file(path, model)")

    @classmethod
    @log.quoted()
    def init_from_file(
        cls, path: str | os.PathLike[str], model: ModelBase, params: MtmdContextParams | None = None
    ) -> MtmdContext:
        """Load a projector: a GGUF file, whose name usually begins with ``mmproj``.

        Parameters
        ----------
        path
            The file, or its address on the Hugging Face Hub.
        model
            The model that it belongs to.
        params
            How to load it; None: as ``MtmdContextParams()`` says.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        MtmdError
            If it is no projector, or one for another model.

        Notes
        -----
        Uses ``mtmd_init_from_file``.
        """
        name = checks.path("path", path)
        if not isinstance(model, ModelBase):
            raise TypeError(f"model is {shown(model)}; it takes a Model")
        params = MtmdContextParams() if params is None else params
        if not isinstance(params, MtmdContextParams):
            raise TypeError(f"params is {shown(params)}; it takes MtmdContextParams")
        opened = model._open()
        if model._without_weights:
            raise MtmdError("the model was loaded without weights (vocab_only, no_alloc): it cannot see or hear")
        name = local_file(name)
        projector_checks.check(name)
        hooks = Hooks()
        native, kept = params._native(opened)
        lib.moebind_hooks_into_mtmd_params(hooks.pointer, native)
        try:
            with rpc_servers.watched(model._servers):
                pointer = own(
                    lib.own_mtmd_init_from_file, os.fsencode(name), opened, native[0], holds=[opened, hooks.pointer]
                )
        except NativeError as error:
            raise MtmdError(f"{name} could not be loaded: {error.message}{log.recent_lines()}") from error
        del kept  # libmtmd copies it
        if not pointer:
            raise MtmdError(f"{name} could not be loaded for {model!r}{log.recent_lines()}")
        made = cls.__new__(cls)
        made._model, made._params, made._path, made._hooks = model, params, name, hooks
        made._lock = CallLock()
        made._n_embd = int(lib.llama_model_n_embd_inp(opened))
        made._number = next(_serial)
        made._pointer = pointer
        model._add_child(made)
        return made

    def close(self) -> None:
        """Free it, once nothing uses it any more (``mtmd_free``); waits for a running call."""
        if self._pointer is not None:
            with self._lock.held():
                self._pointer = None

    def __repr__(self) -> str:
        return "<MtmdContext, closed>" if self.closed else f"<MtmdContext {os.path.basename(self._path)}>"

    @property
    def model(self) -> ModelBase:
        """The model that it was loaded for."""
        return self._model

    @property
    def params(self) -> MtmdContextParams:
        """The parameters that it was loaded with."""
        return self._params

    @property
    def path(self) -> str:
        """The file that it was loaded from."""
        return self._path

    def decode_use_non_causal(self, chunk: InputChunk | None = None) -> bool:
        """Whether the model looks at all of a chunk at once (``mtmd_decode_use_non_causal``).

        Such a chunk has to fit one batch, ``n_ubatch``.

        Parameters
        ----------
        chunk
            The chunk; None: pictures in general.
        """
        native = self._open()
        return bool(
            lib.mtmd_decode_use_non_causal(native, ffi.NULL if chunk is None else _opened_chunk("chunk", chunk))
        )

    @log.quoted()
    def tokenize(
        self,
        text: str | Sequence[str | Bitmap],
        bitmaps: Sequence[Bitmap] = (),
        *,
        add_special: bool = True,
        parse_special: bool = True,
    ) -> InputChunks:
        """Make chunks of text, pictures and sound.

        Parameters
        ----------
        text
            Text with a :attr:`marker` where each of ``bitmaps`` belongs. Or a list of texts and bitmaps in their order,
            in which no text is taken for a marker.
        bitmaps
            Pictures and sound, as many as there are markers.
        add_special
            Add the tokens that the model wants at the beginning and the end.
        parse_special
            Recognise special tokens in the text.

        Raises
        ------
        MtmdError
            If the markers are not as many as the bitmaps, or the projector does not take one of these.

        Notes
        -----
        Uses ``mtmd_tokenize`` and ``mtmd_tokenize_from_parts``. Pictures are scaled and cut here, and sound is
        transformed; :meth:`encode_chunk` computes what the model reads.
        """
        special = checks.boolean("add_special", add_special)
        parsed = checks.boolean("parse_special", parse_special)
        if isinstance(text, str):
            checks.utf8("text", text)
            pictures = _bitmaps("bitmaps", bitmaps)
            pieces = text.split(self.marker)
            if len(pieces) - 1 != len(pictures):
                raise MtmdError(
                    f"text has {len(pieces) - 1} times the marker {self.marker!r}, for {len(pictures)} bitmaps: it "
                    "takes one for each"
                )
            parts: list[str | Bitmap] = [pieces[0]]
            for picture, piece in zip(pictures, pieces[1:], strict=True):
                parts += [picture, piece]
        else:
            if len(bitmaps):
                raise MtmdError("bitmaps are given besides a list: put them into it, where they belong")
            parts = checked_parts("text", text)
        return self._tokenize([part for part in parts if part != ""], special, parsed)

    def _tokenize(self, parts: Sequence[str | Bitmap], add_special: bool, parse_special: bool) -> InputChunks:
        """See :meth:`tokenize`; the parts are checked."""
        self._model._usable_vocab()
        kept: list[object] = []
        native = ffi.new("struct mtmd_input_part[]", max(len(parts), 1))
        for at, part in enumerate(parts):
            if isinstance(part, str):
                encoded = checks.utf8("text", part)
                if len(encoded) > checks.INT32_MAX:
                    raise ValueError("text has more than 2 GiB")
                data = ffi.from_buffer("char[]", encoded)
                struct = ffi.new("struct mtmd_input_text *", (data, len(encoded), False, parse_special))
                kept += [data, struct]
                native[at].text = struct
            else:
                self._must_take(part)
                kept.append(pointer := part._open())
                native[at].bitmap = pointer
        places = ffi.new("struct mtmd_input_part *[]", [native + at for at in range(len(parts))] or 1)
        chunks = InputChunks()
        chunks._maker = self._number
        output = chunks._open()
        # Preprocessing is pure, but for what the projector keeps of a picture's size.
        with self._lock.held():
            code = lib.mtmd_tokenize_from_parts(self._open(), output, places, len(parts), add_special)
        if code != 0:
            raise MtmdError(f"the prompt could not be made into chunks{log.recent_lines(3)}")
        for chunk in chunks:
            tokens = chunk.text_tokens
            # libmtmd does not look whether it found the tokens that it puts around the parts of a picture.
            if tokens is not None and tokens.size and int(tokens.min()) < 0:
                raise MtmdError(
                    f"the model's vocabulary lacks tokens that {self!r} puts around pictures: it is for another"
                )
        return chunks

    def _tokenize_known(self, parts: Sequence[str | Bitmap]) -> tuple[InputChunks, list[bytes]]:
        """Chunks of a prompt, and for each what its bitmap shows; nothing for text."""
        pictures = [part for part in parts if isinstance(part, Bitmap)]
        # Chunks know their bitmap by its id, which is the user's: so it is another one meanwhile.
        with ExitStack() as held:
            for picture in sorted({id(each): each for each in pictures}.values(), key=id):
                held.enter_context(picture._called(picture._content().hex()))
            chunks = self._tokenize(parts, True, True)
        return chunks, [bytes.fromhex(chunk.id or "") for chunk in chunks]

    def _must_take(self, bitmap: Bitmap) -> None:
        sound = bitmap.is_audio
        if not (self.support_audio if sound else self.support_vision):
            raise MtmdError(
                f"{self!r} takes no {'sound' if sound else 'pictures'}: use a model and projector that "
                f"{'hear' if sound else 'see'}"
            )

    def encode_chunk(self, chunk: InputChunk) -> NDArray[np.float32]:
        """Compute what the model reads of a picture or sound.

        Parameters
        ----------
        chunk
            A chunk of :meth:`tokenize`, not of text.

        Returns
        -------
        numpy.ndarray
            float32, ``(n_tokens, n_embd_inp)``: your own.

        Raises
        ------
        MtmdError
            If the chunk is text, was tokenized by another projector, or cannot be encoded.
        AbortedError
            If an asynchronous generation was left meanwhile.

        Notes
        -----
        Uses ``mtmd_encode_chunk`` and ``mtmd_get_output_embd``. Ctrl-C stops it.
        """
        pointer = self._opened_media(chunk)
        with self._encoding() as native:
            self._computed(lib.mtmd_encode_chunk(native, pointer))
            return self._rows(lib.mtmd_get_output_embd(native), chunk.n_tokens)

    def encode_chunks(self, chunks: Sequence[InputChunk]) -> list[NDArray[np.float32]]:
        """:meth:`encode_chunk` for several, at once where the projector can: pictures of one size.

        Parameters
        ----------
        chunks
            Chunks of :meth:`tokenize`, none of text; at most ``batch_max_tokens`` tokens are computed at once.

        Returns
        -------
        list of numpy.ndarray

        Notes
        -----
        Uses ``mtmd_batch_init``, ``mtmd_batch_add_chunk``, ``mtmd_batch_encode`` and ``mtmd_batch_get_output_embd``.
        """
        waiting = [(each, self._opened_media(each)) for each in chunks]
        done: list[NDArray[np.float32]] = []
        while waiting:
            with self._encoding() as native:
                batch = own(lib.own_mtmd_batch_init, native, holds=[native])
                taken = 0
                while taken < len(waiting) and lib.mtmd_batch_add_chunk(batch, waiting[taken][1]) == 0:
                    taken += 1
                if not taken:
                    raise MtmdError(f"a chunk could not be encoded{log.recent_lines(3)}")
                self._computed(lib.mtmd_batch_encode(batch))
                for chunk, pointer in waiting[:taken]:
                    done.append(self._rows(lib.mtmd_batch_get_output_embd(batch, pointer), chunk.n_tokens))
                del waiting[:taken]
        return done

    def _opened_media(self, chunk: InputChunk) -> CData:
        pointer = _opened_chunk("chunk", chunk)
        if chunk._maker != self._number:
            raise MtmdError(f"{chunk!r} was not tokenized by {self!r}: sizes differ from one projector to another")
        if chunk.chunk_type == InputChunkType.TEXT:
            raise MtmdError(f"{chunk!r} is text, which is not encoded: decode its text_tokens")
        return pointer

    @contextmanager
    def _encoding(self) -> Iterator[CData]:
        """Hold it while it computes, and the errors that an exception quotes."""
        with self._lock.held(), rpc_servers.watched(self._model._servers), log.quoted():
            yield self._open()

    def _computed(self, code: int) -> None:
        """Raise unless a graph was computed to its end. The caller holds this."""
        if lib.moebind_hooks_aborted(self._hooks.pointer):
            lib.moebind_hooks_forget(self._hooks.pointer)
            raise AbortedError("the encoding was aborted", 2)
        if code != 0:
            raise MtmdError(f"a chunk could not be encoded{log.recent_lines(3)}")

    def _rows(self, embeddings: CData, n_tokens: int) -> NDArray[np.float32]:
        if not embeddings:
            raise MtmdError(f"a chunk could not be encoded{log.recent_lines(3)}")
        size = n_tokens * self._n_embd
        shown_there = np.frombuffer(ffi.buffer(embeddings, 4 * size), np.float32)
        rows: NDArray[np.float32] = shown_there.reshape(n_tokens, self._n_embd).copy()
        return rows


def _opened_chunk(name: str, chunk: InputChunk) -> CData:
    if not isinstance(chunk, InputChunk):
        raise TypeError(f"{name} is {shown(chunk)}; it takes an InputChunk, such as chunks[0]")
    return chunk._open()


def _bitmaps(name: str, given: Sequence[Bitmap]) -> list[Bitmap]:
    if isinstance(given, Bitmap) or not isinstance(given, Sequence):
        raise TypeError(f"{name} is {shown(given)}; it takes a list of Bitmap")
    for at, each in enumerate(given):
        if not isinstance(each, Bitmap):
            raise TypeError(f"{name}[{at}] is {shown(each)}; it takes a Bitmap, such as Bitmap.from_file(path)")
    return list(given)


def checked_parts(name: str, given: Sequence[object]) -> list[str | Bitmap]:
    """Texts and bitmaps, those that are not empty.

    Raises
    ------
    TypeError
    """
    if not isinstance(given, Sequence):
        raise TypeError(f"{name} is {shown(given)}; it takes text, or a list of texts and bitmaps")
    for at, each in enumerate(given):
        if not isinstance(each, (str, Bitmap)):
            raise TypeError(f"{name}[{at}] is {shown(each)}; it takes a text or a Bitmap")
    return [each for each in given if isinstance(each, (str, Bitmap)) and each != ""]
