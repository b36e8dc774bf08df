"""A CUDA device that computes nothing: its tensors have shapes, types and a place, but no numbers. The CPU's are real."""

import os
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
ASKS = {aten._local_scalar_dense.default, aten.item.default, aten.nonzero.default, aten.equal.default}
PACKAGE = Path(__file__).parents[3] / "pretrain"


class Counts:
    """What happened since `reset`, by the line of the program that did it."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.waits: Counter[str] = Counter()
        self.copies: Counter[str] = Counter()
        self.streams: list[str] = []


class FakeDevice(TorchDispatchMode):
    """Runs what concerns CUDA on fake tensors, and notes what waits for the device.

    Whatever is asked of the device is answered with ones: losses are 1 and finite.
    """

    supports_higher_order_operators = True  # flex attention is one

    def __init__(self) -> None:
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.counts = Counts()
        self.registered: set[int] = set()
        self._pinned: dict[int, StorageWeakRef] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = dict(kwargs or {})
        device = kwargs.get("device")
        to_fake = device is not None and torch.device(device).type == "cuda"
        is_fake = any(issubclass(kind, FakeTensor) for kind in types) or _holds_fake((args, kwargs))
        if not (to_fake or is_fake):
            return self._on_cpu(func, args, kwargs)
        if func in ASKS:
            self.counts.waits[f"{func} at {_where()}"] += 1
            return self._answer(func, args)
        if func in (aten._to_copy.default, aten.copy_.default):
            return self._copy(func, args, kwargs)
        with self.fake:
            return func(*args, **kwargs)

    def _on_cpu(self, func: Any, args: tuple, kwargs: dict) -> Any:
        pin = kwargs.pop("pin_memory", False)
        made = func(*args, **kwargs)
        if pin:
            ref = StorageWeakRef(made.untyped_storage())
            self._pinned[ref.cdata] = ref
        return made

    def _answer(self, func: Any, args: tuple) -> Any:
        tensor = args[0]
        if func is aten.nonzero.default:
            with self.fake:
                return torch.empty(0, tensor.dim(), dtype=torch.int64, device=tensor.device)
        return True if func is aten.equal.default else torch.ones((), dtype=tensor.dtype).item()

    def _copy(self, func: Any, args: tuple, kwargs: dict) -> Any:
        """Between host and device, or on the device."""
        if func is aten.copy_.default:
            into, source = args[0], args[1]
            waits = not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
            there = into.device
        else:
            into, source = None, args[0]
            waits, there = not kwargs.get("non_blocking", False), torch.device(kwargs.get("device") or source.device)
        if there.type == source.device.type:
            with self.fake:
                return func(*args, **kwargs)
        host = into if there.type == "cpu" else source
        pinned = host is not None and self._is_pinned(host)
        way = f"{source.device.type} to {there.type}"
        if source.numel() and (waits or not pinned) and not (source.dim() == 0 and source.device.type == "cpu"):
            self.counts.waits[f"{way}, {'pinned' if pinned else 'pageable'} at {_where()}"] += 1
        else:
            self.counts.copies[f"{way} at {_where()}"] += 1
        if there.type == "cuda":
            with self.fake:
                return func(*args, **kwargs)
        if into is not None:
            return into.fill_(1)
        return torch.ones(source.shape, dtype=kwargs.get("dtype") or source.dtype)

    def _is_pinned(self, tensor: torch.Tensor) -> bool:
        address = tensor.untyped_storage().data_ptr()
        if address in self.registered:
            return True
        ref = self._pinned.get(StorageWeakRef(tensor.untyped_storage()).cdata)
        return ref is not None and not ref.expired()


def _holds_fake(values: Any) -> bool:
    if isinstance(values, dict):
        return any(map(_holds_fake, values.values()))
    if isinstance(values, tuple | list):
        return any(map(_holds_fake, values))
    return isinstance(values, FakeTensor)


def _where() -> str:
    """The line of the program that asked; else the innermost of all."""
    stack = traceback.extract_stack()[:-3]
    own = [frame for frame in stack if frame.filename.startswith(str(PACKAGE))]
    frame = (own or stack)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno} {frame.line}"


class Stream:
    """One of several that compute nothing, and note who waits for what."""

    notes: list[str]

    def __init__(self, *device: object) -> None:
        pass

    def wait_stream(self, other: "Stream") -> None:
        self.notes.append("wait")


@contextmanager
def in_stream(stream: Stream) -> Iterator[None]:
    stream.notes.append("copy")
    yield


class Event:
    """A mark in a stream that computes nothing."""

    counts: Counts

    def __init__(self, **how: object) -> None:
        pass

    def record(self, *stream: object) -> None:
        pass

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        self.counts.waits[f"an event at {_where()}"] += 1

    def elapsed_time(self, later: "Event") -> float:
        return 1.0


def _as(weight: torch.nn.Parameter, to: torch.device | torch.dtype) -> torch.nn.Parameter:
    moved = weight.detach().to(to)
    if moved.dtype == weight.dtype and moved.device == weight.device:
        return weight
    other = torch.nn.Parameter(moved, weight.requires_grad)
    other.__dict__ |= weight.__dict__  # what Megatron-Core notes of it
    return other


def _moved(module: torch.nn.Module, to: torch.device | torch.dtype) -> torch.nn.Module:
    """`Module.to` without its exchange of tensors, which fake ones refuse."""
    for part in module.modules():
        part._parameters |= {name: _as(own, to) for name, own in part._parameters.items() if own is not None}
        part._buffers |= {name: own.to(to) for name, own in part._buffers.items() if own is not None}
    return module


def install() -> FakeDevice:
    """Have `torch.cuda` answer as with one H100 a process, which only fake tensors are on."""
    torch._C._ensureCUDADeviceGuardSet()
    FakeTensorMode.avoid_device_init = True  # else only where `torch.cuda` says that there is none
    device = FakeDevice()
    Event.counts = device.counts
    gib, local = 2**30, int(os.environ.get("LOCAL_RANK", "0"))
    known = {
        "is_available": True,
        "device_count": 1,  # as where each rank sees its own alone
        "current_device": 0,
        "set_device": None,
        "_lazy_init": None,
        "get_device_capability": (9, 0),
        "get_device_name": "a device that computes nothing",
        "is_bf16_supported": True,
        "mem_get_info": (80 * gib, 80 * gib),
        "reset_peak_memory_stats": None,
        "manual_seed": None,
        **{f"{most}memory_{kind}": 0 for most in ("", "max_") for kind in ("allocated", "reserved")},
    }
    for name, answer in known.items():
        setattr(torch.cuda, name, lambda *args, answer=answer, **kwargs: answer)
    properties = SimpleNamespace(
        uuid=f"fake-{local}", total_memory=80 * gib, name="fake", major=9, minor=0, multi_processor_count=132
    )
    torch.cuda.get_device_properties = lambda *args: properties
    for place in (torch.cuda, torch.cuda.random):  # nothing is drawn on the device
        place.get_rng_state = lambda *args, **kwargs: torch.get_rng_state()
        place.set_rng_state = lambda *args, **kwargs: None
    torch.cuda.synchronize = lambda *args: device.counts.waits.update([f"the device at {_where()}"])
    torch.cuda.check_error = lambda result: None
    torch.cuda.cudart = lambda: SimpleNamespace(cudaHostRegister=lambda address, size, flags: device.registered.add(address))
    torch.nn.Module.to = _moved
    Stream.notes = property(lambda stream: device.counts.streams)
    torch.cuda.Stream = Stream
    torch.cuda.current_stream = Stream
    torch.cuda.stream = in_stream
    torch.Tensor.record_stream = lambda tensor, stream: device.counts.streams.append("lent")
    torch.cuda.Event = Event
    return device
