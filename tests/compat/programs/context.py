"""Where code runs, what it holds, and what the cluster has."""

import ray


@ray.remote(num_cpus=1, resources={"special": 0.5})
def inside():
    context = ray.get_runtime_context()
    return {
        "task": bool(context.get_task_id()),
        "actor": context.get_actor_id(),
        "name": context.get_task_name(),
        "resources": {name: context.get_assigned_resources().get(name) for name in ("CPU", "special")},
        "mode": context.worker.mode == ray.WORKER_MODE,
        "node": context.get_node_id(),
        "job": context.get_job_id(),
    }


@ray.remote
class Actor:
    def who(self):
        context = ray.get_runtime_context()
        return context.get_actor_id(), context.get_actor_name(), context.was_current_actor_reconstructed

    def me(self):
        return ray.get_runtime_context().current_actor

    def value(self):
        return 5


if __name__ == "__main__":
    print("initialized", ray.is_initialized())
    ray.init(num_cpus=2, resources={"special": 1})
    print("initialized", ray.is_initialized())
    total = ray.cluster_resources()
    print("cluster", total["CPU"], total["special"], "memory" in total)
    [node] = ray.nodes()
    print("node", node["Alive"], node["Resources"]["CPU"])
    context = ray.get_runtime_context()
    print("driver", context.worker.mode == ray.SCRIPT_MODE, context.get_actor_id(), len(context.get_job_id()) > 0)
    answer = ray.get(inside.options(name="looks").remote())
    print("same node", answer.pop("node") == context.get_node_id() == node["NodeID"])
    print("same job", answer.pop("job") == context.get_job_id())
    print(answer)
    actor = Actor.options(name="me").remote()
    identity, name, again = ray.get(actor.who.remote())
    print("actor", identity == actor._actor_id.hex(), name, again)
    print("itself", ray.get(ray.get(actor.me.remote()).value.remote()))
    print("gpus", ray.get_gpu_ids())
    try:
        ray.init()
    except RuntimeError:
        print("once")
    ray.init(ignore_reinit_error=True)
    ray.shutdown()
    print("initialized", ray.is_initialized())
    ray.shutdown()
