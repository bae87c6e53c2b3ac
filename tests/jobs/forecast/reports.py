"""A report of a preflight, for tests of its text and its costs."""

from uvit_jax.parallel.chips import GiB


def report_of(total=9.23, fits=True, **changes):
    """A report with the figures of a real one, of U-ViT-H/4 on v5e:16x16."""
    names = (
        "parameters",
        "optimizer",
        "EMA",
        "batch",
        "padding",
        "temporaries",
        "results",
        "program",
    )
    sizes = (1.87, 3.73, 1.87, 0.0, 0.0, 1.43, 0.0, 0.33)
    return {
        "hardware": {
            "text": "v5e:16x16 (256 chips)",
            "name": "v5e:16x16",
            "num_slices": 1,
            "chips": 256,
        },
        "versions": {"jax": "0.10.2", "libtpu": None},
        "model": {
            "parameters": 500_940_000,
            "num_tokens": 258,
            "dtype": "bfloat16",
            "remat": "matmuls",
        }
        | {"scan_blocks": False},
        "mesh": {"data": 256, "fsdp": 1, "tensor": 1},
        "batch": {"global": 1024, "per_chip": 4, "per_replica": 4},
        "compile_seconds": 116.0,
        "memory": {
            "parts": {name: int(size * GiB) for name, size in zip(names, sizes, strict=True)},
            "total": int(total * GiB),
            "capacity": int(15.75 * GiB),
            "fits": fits,
        },
        "flops": {
            "model": 3.197e12,
            "compiled": 3.215e12,
            "compiled_loops_once": 3.215e12,
            "compiler_loops_once": 3.269e12,
            "unknown_loops": [],
        },
        "collectives": [
            {
                "kind": "all-reduce",
                "network": "ici",
                "count": 10,
                "bytes": 1002000000,
                "wire_bytes": 1996200000,
            }
        ],
        "roofline": {
            "compute": 0.01632,
            "hbm": 0.01957,
            "ici": 0.00998,
            "dcn": 0.0,
            "bound": 0.01957,
            "no_overlap": 0.04587,
            "limit": "hbm",
            "highest_mfu": 0.829,
        },
        "run": {
            "steps": 500_000,
            "asked_mfu": 0.4,
            "mfu": 0.4,
            "mfu_source": "asked",
            "step_seconds": 0.0406,
            "images_per_second": 25_237.0,
            "hours": 5.64,
            "chip_hours": 1443.0,
        },
        "schedule": None,
        "sampler": None,
        "search": None,
    } | changes
