"""The commands: python -m resnet_jax"""

from resnet_jax.commands import COMMANDS

if __name__ == "__main__":
    for command, purpose in COMMANDS.items():
        print(f"{command:<38} {purpose}")
    print("each explains itself with --help")
