import sys,torch; torch.set_num_threads(1)
from ultralytics import YOLO
r=YOLO(sys.argv[1]).val(data=f"/tmp/w/res/{sys.argv[2]}.yaml",imgsz=160,batch=50,workers=0,plots=False,verbose=False,device="cpu",project="/tmp/w/res/runs",name="ev"+sys.argv[3],exist_ok=True)
print("EVAL",sys.argv[1:],100*r.box.map50,100*r.box.map)
