import pytest, sys
sys.path[:0]=['/work/main/'+x for x in ('tests','loader','transform','verify','cli')]
from pathlib import Path
from loader.kill.points import OPERATIONS, kill_everywhere
from loader.kill.stage import HOOKS, stage
from support.nets import in_netns
@pytest.mark.parametrize("hook",list(HOOKS))
@pytest.mark.parametrize("operation",list(OPERATIONS))
def test_q(hook,operation,tmp_path,bpffs,kernel):
    def run():
        with stage(hook,tmp_path,bpffs) as h:
            c=kill_everywhere(h,OPERATIONS[operation],thorough=False)
            print("POINTS",hook,operation,len(c.injected),len(c.calls),c.frames)
    in_netns(run)
