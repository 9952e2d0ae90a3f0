"""Train a network: python train.py --config=configs/x.py --config.optim.lr=0.2 --workdir=DIR"""

import sys

from resnet_jax import signals

if __name__ == "__main__":
    signals.end_outside_of_training()  # before anything that takes time to import
    from resnet_jax.commands import command_line

    with command_line():
        from resnet_jax.config.flags import parse_training

        config, workdir, address = parse_training(sys.argv, __doc__)
        from resnet_jax import join, train  # after the command line is known to be good: it takes seconds

        if address:
            join(*address[:4])
        with workdir as folder:
            train(config, folder)
