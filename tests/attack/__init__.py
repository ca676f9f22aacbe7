"""A seeded attack on the promises of the client and of the batch.

`python -m tests.attack --calls 1000000` plays random scripts of faults against single
calls and batches on jumping time; `--journals 10000` kills, damages and resumes batches
in processes of their own. The attack has a server and books of its own and takes
nothing from the emulator or from the client but their public names.
"""
