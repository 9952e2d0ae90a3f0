"""The commands: python -m resnet_jax"""

from resnet_jax.commands import COMMANDS

if __name__ == "__main__":
    width = max(map(len, COMMANDS))
    for command, purpose in COMMANDS.items():
        print(f"{command:<{width}} {purpose}")
    print("each explains itself with --help")
