"""``python -m moebind.backend.rpc_worker``: a worker, by the name it had first."""

from moebind.backend.rpc_worker import main

if __name__ == "__main__":
    main()
