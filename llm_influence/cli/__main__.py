"""`python -m llm_influence.cli`."""

from llm_influence.cli import main

if __name__ == "__main__":
    main()
