"""``python -m sdgpu`` is the command ``sdgpu``, so that ``torchrun -m sdgpu train ...`` works."""

from sdgpu.cli import app

if __name__ == "__main__":
    app(prog_name="sdgpu")
