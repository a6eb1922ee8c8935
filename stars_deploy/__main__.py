"""``python -m stars_deploy``, the same as ``stars-deploy``; for torchrun, which starts modules."""

from stars_deploy.cli import main

if __name__ == "__main__":
    main()
