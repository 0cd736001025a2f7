"""The loop around a method: `from jnl.train.fit import fit`."""
