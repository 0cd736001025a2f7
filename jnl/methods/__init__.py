"""Methods: a file for each trainable paper, and what some of them share.

`from jnl.methods.elr import elr`. Shared: `bags`, networks of instances on bags
of them, and `ill_losses`, the steps of ILL as losses.
"""
