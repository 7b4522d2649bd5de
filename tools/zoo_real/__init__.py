"""Makes adapters on two real language models that come as packages: `python -m tools.zoo_real --help`."""
