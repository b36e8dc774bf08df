"""GPUs: peak speed and memory, from the makers' data sheets. Dense matrix products, without sparsity."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """One device."""

    bf16_tflops: float
    fp32_tflops: float
    """Real fp32; PyTorch does not use TF32 unless told to."""
    memory_gib: float
    memory_tbps: float
    """Rate of its memory, TB/s."""
    link_gbps: float
    """To the other GPUs of its node, in one direction: half of what data sheets add up."""

    def tflops(self, bf16: bool) -> float:
        return self.bf16_tflops if bf16 else self.fp32_tflops


GPUS = {
    "a100-40gb": Gpu(312, 19.5, 40, 1.555, 2400),  # NVIDIA A100 data sheet, SXM
    "a100-80gb": Gpu(312, 19.5, 80, 2.039, 2400),  # NVIDIA A100 data sheet, SXM
    "h100": Gpu(989, 67, 80, 3.35, 3600),  # NVIDIA H100 data sheet, SXM; its headline 1,979 is with sparsity
    "h200": Gpu(989, 67, 141, 4.8, 3600),  # NVIDIA H200 data sheet, SXM
    "b200": Gpu(2250, 80, 180, 8, 7200),  # NVIDIA DGX B200 data sheet, an eighth of the system
    "mi300x": Gpu(1307, 163.4, 192, 5.3, 3584),  # AMD Instinct MI300X data sheet
}
