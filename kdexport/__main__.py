"""`python -m kdexport`, which is what torchrun starts."""

from kdexport.commands.main import main

if __name__ == "__main__":
    main()
