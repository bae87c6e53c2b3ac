"""The command line as `python -m uvit_jax`."""

from uvit_jax.main import run

if __name__ == "__main__":
    run()
