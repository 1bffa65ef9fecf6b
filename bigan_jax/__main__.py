"""`python -m bigan_jax` is the command `bigan-jax`."""

from bigan_jax.commands import console

if __name__ == "__main__":
    console.main()
