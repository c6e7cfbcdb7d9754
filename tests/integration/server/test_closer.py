def test_x(world):
    world.dataset(3)
    world.task(outputs=["{stem}.a"])
    world.form()
    world.pilot()
    for job in world.claim(n_jobs=3):
        world.complete(job)
    assert world.close_tasks() == 1
    print(world.rows())
