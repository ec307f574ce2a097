"""Classes of devices by their data sheets: plans for machines that are not here.

What a device is sold with is never reached: SHARE of it is counted, the same for all. Figures:

======  ==========================================================================================
h100    NVIDIA H100 SXM data sheet (2023): 67 TFLOPS float64 (tensor cores) and float32, 3.35 TB/s,
        80 GB, NVLink 900 GB/s both ways together; 16 exponentials in a cycle of each of 132
        multiprocessors, 3.7e12 a second; DGX H100: 8 devices, 400 Gb/s network for each
h200    NVIDIA H200 SXM data sheet (2024): the same processor, 4.8 TB/s, 141 GB
a100    NVIDIA A100 80GB SXM data sheet (2021): 19.5 TFLOPS float64 (tensor cores) and float32,
        2.04 TB/s, NVLink 600 GB/s; 108 multiprocessors at 1.41 GHz, 2.4e12 exponentials a second;
        DGX A100: 8 devices, 200 Gb/s for each
cpu     two cores with AVX2, as :data:`sdgpu.backend.rates.NOMINAL`: measured (`bench_products`); one
        process a host, Ethernet of 10 Gb/s
======  ==========================================================================================

No GPU has been measured: their kernel values are those of a fused product bounded by its exponentials and
multiply-adds (float32), or by a polynomial of some 20 of them (float64).
"""

from __future__ import annotations

from dataclasses import dataclass

from sdgpu.backend.rates import NOMINAL, Rates

__all__ = ["CLASSES", "DeviceClass", "device_class"]

SHARE = 0.7  # of the data sheet that large products reach: public benchmarks of cuBLAS, 0.6 to 0.9
STATISTIC = 12  # multiply-adds of a kernel value but its exponential, for 8 features
POLYNOMIAL = 20  # multiply-adds of an exponential in float64
PASSES = 32  # bytes of a float32 value that passes through memory tile by tile, unfused
COMPILED = 3.0  # values of the compiled loop over those of torch's passes: bench_products


@dataclass(frozen=True)
class DeviceClass:
    """What one device and its connections do.

    Attributes
    ----------
    name : str
    rates : Rates
    memory : int
        Bytes that a fit may use.
    per_host : int
        Devices of a host.
    link, network : float
        Bytes a second that a device receives from others of its host, and from other hosts.
    latency : float
        Seconds of a message.
    source : str
    is_gpu : bool
    """

    name: str
    rates: Rates
    memory: int
    per_host: int
    link: float
    network: float
    latency: float
    source: str
    is_gpu: bool = False

    def bandwidth(self, ranks: int) -> float:
        """Bytes a second that each of so many ranks receives: within a host, or between hosts."""
        return self.link if ranks <= self.per_host else self.network


def _gpu(
    name: str,
    *,
    flops64: float,
    flops32: float,
    exponentials: float,
    bytes_: float,
    **connections: float,
) -> DeviceClass:
    """From a data sheet: flops of matrix products, exponentials and bytes in a second."""
    products, products32 = SHARE * flops64 / 2, SHARE * flops32 / 2
    # without tensor cores, half of them
    tiles = 1 / ((STATISTIC + POLYNOMIAL) / (products / 2))
    tiles32 = 1 / (STATISTIC / products32 + 1 / (SHARE * exponentials))
    powers32 = SHARE * bytes_ / PASSES
    return DeviceClass(
        name=name,
        rates=Rates(
            products=products,
            products32=products32,
            powers=min(powers32 / 2, tiles),
            powers32=min(powers32, tiles32),
            bandwidth=SHARE * bytes_,
            tiles=tiles,
            tiles32=tiles32,
        ),
        memory=int(0.9 * connections["memory"]),
        per_host=8,
        link=SHARE * connections["link"],
        network=SHARE * connections["network"],
        latency=2e-5,
        source="data sheet, not measured",
        is_gpu=True,
    )


CLASSES = {
    "h100": _gpu(
        "h100",
        flops64=67e12,
        flops32=67e12,
        exponentials=3.7e12,
        bytes_=3.35e12,
        memory=80e9,
        link=450e9,
        network=50e9,
    ),
    "h200": _gpu(
        "h200",
        flops64=67e12,
        flops32=67e12,
        exponentials=3.7e12,
        bytes_=4.8e12,
        memory=141e9,
        link=450e9,
        network=50e9,
    ),
    "a100": _gpu(
        "a100",
        flops64=19.5e12,
        flops32=19.5e12,
        exponentials=2.4e12,
        bytes_=2.04e12,
        memory=80e9,
        link=300e9,
        network=25e9,
    ),
    "cpu": DeviceClass(
        name="cpu",
        rates=Rates(
            products=NOMINAL.products,
            products32=NOMINAL.products32,
            powers=NOMINAL.powers,
            powers32=NOMINAL.powers32,
            bandwidth=NOMINAL.bandwidth,
            tiles=COMPILED * NOMINAL.powers,
            tiles32=COMPILED * NOMINAL.powers32,
        ),
        memory=16 * 2**30,
        per_host=1,
        link=SHARE * 1.25e9,
        network=SHARE * 1.25e9,
        latency=1e-4,
        source="two cores with AVX2, measured",
    ),
}


def device_class(name: str) -> DeviceClass:
    """The class of a name.

    Raises
    ------
    ValueError
        For a name that is none; lists them.
    """
    if name not in CLASSES:
        raise ValueError(
            f"device={name!r} is no class of devices that is known by its data sheet: take one of "
            f"{', '.join(CLASSES)}"
        )
    return CLASSES[name]
