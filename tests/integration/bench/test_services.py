from __future__ import annotations

def test_one(router):
    import time
    web = {"name": "web", "fwmark": 80, "traffic": [{"destination": ["192.0.2.10","2001:db8::10"], "protocol": "tcp", "ports": [80, 443]}], "real_servers": [{"address": "10.0.0.11", "upper_threshold": 10, "lower_threshold": 5}, {"address": "2001:db8:ffff:eeee:dddd:cccc:bbbb:aaaa"}]}
    t=time.time(); router.snapshot(); print("snap", time.time()-t)
    t=time.time(); router.run("lvs_info"); print("info", time.time()-t)
    t=time.time(); r = router.converge("lvs_service", services=[web]); print("conv", time.time()-t)
    print(r); print(router.snapshot())
    t=time.time(); router.run("lvs_service", services=[web]); print("run", time.time()-t)
    t=time.time(); router.tool("true"); print("true", time.time()-t)
def test_two(router):
    test_one(router)
