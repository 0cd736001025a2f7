"""One thin file for each trainable paper: `from jnl.methods.elr import elr`."""
